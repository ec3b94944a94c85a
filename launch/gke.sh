#!/usr/bin/env bash
# Kubernetes on Google Cloud: fills in launch/gke/*.yaml and applies it.
#
#   launch/gke.sh image    --image=REGION-docker.pkg.dev/PROJECT/REPO/vf:TAG --type=tpu-v6e-slice      builds and pushes
#   launch/gke.sh queues   --type=tpu-v6e-slice --quota=32                                once per cluster
#   launch/gke.sh train    --name= --image= --workdir=gs://... --type=tpu-v6e-slice --topology=4x4 --hosts=4 --chips=4
#                          -- --config=... [flags of vf.main]
#   launch/gke.sh evaluate --name= --image= --workdir= --type=tpu-v6e-slice --topology=1x1 --chips=1 -- ...
#   launch/gke.sh sample   ... --samplers=4 -- ...                     pod I draws with seed I, to WORKDIR/more/I
#   launch/gke.sh logs|status|stop --name=
#
# --type: a TPU's (cloud.google.com/gke-tpu-accelerator) or a GPU's (cloud.google.com/gke-accelerator), nvidia-h100-80gb.
# FLAGS: --slices=1 (of TPUs) --spot --queue=vf --namespace=default --service-account=default --restarts=20 --dry-run
set -euo pipefail
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
templates=$(dirname "${BASH_SOURCE[0]}")/gke

choose_action "image queues train evaluate sample logs status stop" "$@"
shift
option=([name]="" [image]="" [workdir]="" [type]="" [topology]="" [hosts]=1 [chips]=4 [slices]=1 [samplers]=1
  [quota]="" [spot]=no [queue]=vf [namespace]=default [service_account]=default [restarts]=20 [dry_run]=no)
parse "$@"
names queue namespace service_account
number hosts chips slices samplers restarts
((option[hosts] && option[chips] && option[slices] && option[samplers])) ||
  fail "--hosts, --chips, --slices and --samplers must be 1 or more"
type=${option[type]} namespace=${option[namespace]}
[[ $type == tpu* ]] && kind=tpu resource=google.com/tpu || kind=cuda resource=nvidia.com/gpu

# The words as a list that YAML and JSON both read. $(X) would be a variable to Kubernetes: $$(X) is the text.
list() {
  # shellcheck disable=SC2016 # it is Kubernetes that expands $(X)
  python3 -c 'import json, sys; print(json.dumps([w.replace("$(", "$$(").replace("@PROCESS@", "$(PROCESS)") for w in sys.argv[1:]], ensure_ascii=False))' "$@"
}

# The template with every ${NAME} filled in from the environment; a missing one is an error.
render() {
  python3 -c 'import os, string, sys; sys.stdout.write(string.Template(open(sys.argv[1]).read()).substitute(os.environ))' "$templates/$1.yaml"
}

apply() {
  local manifest
  manifest=$(render "$1")
  perform <<E
kubectl apply --filename=- <<'YAML'
$manifest
YAML
E
}

# Fields that the pods of every kind of job share.
describe_pods() {
  need name image workdir type
  names name
  bucket workdir
  local labels tolerations="[]" security="{}"
  if [[ $kind == tpu ]]; then
    need topology
    labels="\"cloud.google.com/gke-tpu-accelerator\": \"$type\", \"cloud.google.com/gke-tpu-topology\": \"${option[topology]}\""
    security='{"privileged": true}' # libtpu locks memory, and newer TPUs need the device itself
  else
    ((option[slices] == 1)) || fail "--slices is for TPUs: for GPUs set --hosts"
    labels="\"cloud.google.com/gke-accelerator\": \"$type\""
  fi
  if [[ ${option[spot]} == yes ]]; then
    labels+=', "cloud.google.com/gke-spot": "true"'
    tolerations='[{"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}]'
  fi
  export NAME=${option[name]} NAMESPACE=$namespace QUEUE=${option[queue]} IMAGE=${option[image]}
  export SERVICE_ACCOUNT=${option[service_account]} RESTARTS=${option[restarts]}
  export HOSTS=${option[hosts]} SLICES=${option[slices]} SAMPLERS=${option[samplers]}
  export NODES="{$labels}" TOLERATIONS=$tolerations SECURITY=$security CHIPS="{\"$resource\": ${option[chips]}}"
}

case $action in
  image)
    need image type
    perform <<E
# The image holds the working tree, committed or not; name it after the revision.
docker build --file=launch/Dockerfile --build-arg=ACCELERATOR=$kind $(quote "--tag=${option[image]}") . &&
  docker push $(quote "${option[image]}")
E
    ;;
  queues)
    need type quota
    number quota
    export QUEUE=${option[queue]} NAMESPACE=$namespace RESOURCE=$resource QUOTA=${option[quota]}
    [[ $kind == tpu ]] && label=cloud.google.com/gke-tpu-accelerator || label=cloud.google.com/gke-accelerator
    export FLAVOR="{\"$label\": \"$type\"}"
    apply queues
    ;;
  train)
    describe_pods
    collect_arguments train
    # A single process gets --processes=1. On TPUs jax finds the others by itself; elsewhere each process gets flags.
    if ((HOSTS * SLICES == 1)); then
      arguments+=(--processes=1)
    elif [[ $kind != tpu ]]; then
      arguments+=("--coordinator=$NAME-train-0-0.$NAME:8476" "--processes=$HOSTS" --process=@PROCESS@)
    fi
    ARGUMENTS=$(list "${arguments[@]}")
    export ARGUMENTS
    apply train
    ;;
  evaluate | sample)
    ((option[hosts] == 1 && option[slices] == 1)) || fail "--hosts and --slices are for train: $action has one host"
    describe_pods
    if ((option[samplers] > 1)); then # each draws to a separate folder, from the run's weights
      [[ $action == sample ]] || fail "--samplers is for sample"
      flags+=("--config.init_from=${option[workdir]}" --config.sample.seed=@PROCESS@)
      collect_arguments sample "${option[workdir]}/more/@PROCESS@"
    else
      collect_arguments "$action"
    fi
    ARGUMENTS=$(list "${arguments[@]}" --processes=1) # each pod is alone, also where they share a job
    export ARGUMENTS
    apply "$action"
    ;;
  logs)
    need name
    perform <<E
# Logs of every host of the training job; each line has its host. Cloud Logging retains them when the pods are gone.
kubectl logs --namespace=$namespace --selector=jobset.sigs.k8s.io/jobset-name=${option[name]} --prefix --tail=-1 --follow --max-log-requests=256
E
    ;;
  status)
    need name
    perform <<E
kubectl get jobset,job,workload,pod --namespace=$namespace
kubectl describe jobset --namespace=$namespace ${option[name]}
E
    ;;
  stop)
    need name
    perform <<E
# Pods get SIGTERM, save a checkpoint and end. The same train command resumes from there.
kubectl delete --namespace=$namespace --ignore-not-found jobset/${option[name]} job/${option[name]}-evaluate job/${option[name]}-sample
E
    ;;
esac
