#!/usr/bin/env bash
# Compute Engine: a managed instance group of TPU machines that form one slice (v5p, v6e, TPU7x and later), or of GPU
# machines. It replaces the Cloud TPU API of tpu_vm.sh, which gets no new versions.
#
#   launch/gce.sh train|evaluate|sample --name= --zone= --machine= --hosts= --workdir=gs://... [FLAGS] -- --config=...
#       creates the group, sets up every machine and runs; after a preemption creates it again and resumes
#   launch/gce.sh create|setup|run|logs|status|stop|delete ...         one step of it
#
# FLAGS: --topology=4x4 (of a TPU slice of several hosts) --provisioning=spot|standard|flex-start --accelerator=tpu|cuda
# (by --machine) --image-family= --image-project= --disk=200GB --project= --revision=HEAD (of the code)
# --constraints=FILE (pip freeze of another run) --restarts=20 (after crashes) --dry-run
set -euo pipefail
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

choose_action "train evaluate sample create setup run logs status stop delete" "$@"
shift
option=([name]="" [zone]="" [machine]="" [hosts]="" [topology]="" [provisioning]=spot [accelerator]="" [project]=""
  [image_family]="" [image_project]="" [disk]=200GB [workdir]="" [revision]=HEAD [constraints]="" [restarts]=20
  [dry_run]=no)
parse "$@"
need name zone project
names name
number restarts
if [[ $action == @(train|evaluate|sample|create|setup|run) ]]; then
  need machine hosts
  number hosts
  ((option[hosts])) || fail "--hosts must be 1 or more"
fi
if [[ ! ${option[accelerator]} ]]; then # TPU machine types are ct6e-standard-4t, tpu7x-standard-4t, ...
  [[ ${option[machine]} == @(ct|tpu)* ]] && option[accelerator]=tpu || option[accelerator]=cuda
fi
[[ ${option[accelerator]} == @(tpu|cuda) ]] || fail "--accelerator must be tpu or cuda, got '${option[accelerator]}'"
[[ ${option[provisioning]} == @(spot|standard|flex-start) ]] ||
  fail "--provisioning must be spot, standard or flex-start, got '${option[provisioning]}'"
slice=no # several TPU hosts with links between their chips
if [[ ${option[accelerator]} == tpu ]] && ((option[hosts] > 1)); then
  slice=yes
  [[ ${option[topology]} ]] || fail "--topology is missing: ${option[hosts]} TPU hosts form a slice, as --topology=4x4"
fi
name=${option[name]} project=${option[project]} hosts=$((option[hosts])) zone=${option[zone]}
region=${zone%-*}
logs=logs/$name
in_zone=$(quote "--zone=$zone" "--project=$project")
group="gcloud compute instance-groups managed"

# Commands, each as text; they are joined to recipes below.

# The policy and the template stay when the group is deleted, so that it can be created again.
prepare() {
  [[ $slice == no ]] || cat <<E
# The policy is what makes one slice of the machines: links between all chips, in this shape.
gcloud compute resource-policies describe $name --region=$region --project=$project >/dev/null 2>&1 ||
  gcloud compute resource-policies create workload-policy $name --region=$region --project=$project --type=HIGH_THROUGHPUT $(quote "--accelerator-topology=${option[topology]}")
E
  local family project_of_image model
  if [[ ${option[accelerator]} == tpu ]]; then
    family=ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e project_of_image=ubuntu-os-accelerator-images
  else
    family=common-cu129-ubuntu-2204-nvidia-580 project_of_image=deeplearning-platform-release
  fi
  model=${option[provisioning]^^}
  cat <<E
gcloud compute instance-templates describe $name --project=$project >/dev/null 2>&1 ||
  gcloud compute instance-templates create $name --project=$project $(quote "--machine-type=${option[machine]}") --provisioning-model=${model/-/_} --maintenance-policy=TERMINATE$(
    [[ $model != SPOT ]] || printf ' --instance-termination-action=STOP'
    [[ $model != FLEX-START ]] || printf ' --instance-termination-action=DELETE --max-run-duration=7d --reservation-affinity=none'
  ) $(quote "--image-family=${option[image_family]:-$family}" "--image-project=${option[image_project]:-$project_of_image}" "--boot-disk-size=${option[disk]}") --scopes=cloud-platform$(
    [[ ${option[accelerator]} == tpu ]] || printf ' --metadata=install-nvidia-driver=True'
  )
E
}
# A slice is made whole or not at all. Single machines are not repaired: a new machine cannot join a slice.
create() {
  printf '%s' "$group create $name $in_zone --template=projects/$project/global/instanceTemplates/$name" \
    " --size=$hosts --default-action-on-vm-failure=do-nothing"
  [[ $slice == no ]] ||
    printf '%s' " --target-size-policy-mode=bulk --workload-policy=projects/$project/regions/$region/resourcePolicies/$name"
  echo
}
delete() { echo "$group delete $name $in_zone --quiet"; }
# The machines that run, in order: the first is process 0.
find_hosts() {
  echo "mapfile -t hosts < <($group list-instances $name $in_zone --filter=instanceStatus=RUNNING --format='value(name)' 2>/dev/null | sort)"
}
functions() {
  cat <<E
# One command on every machine at once; one that is left out hangs the others. The output of machine I goes to I.log in
# \$started; the first status that is not 0 is returned. @FIRST@ stands for machine 0, @PROCESS@ for a machine's number.
everywhere() {
  local i pid pids=() first=0 status command
  for i in "\${!hosts[@]}"; do
    command=\${1//@FIRST@/\${hosts[0]}}
    gcloud compute ssh "\${hosts[i]}" $in_zone --quiet --command="\${command//@PROCESS@/\$i}" </dev/null >>"\$started/\$i.log" 2>&1 &
    pids+=("\$!")
  done
  for pid in "\${pids[@]}"; do
    status=0
    wait "\$pid" || status=\$?
    if ((first == 0)); then first=\$status; fi
  done
  return "\$first"
}
push() { # file, where to
  local host
  for host in "\${hosts[@]}"; do
    gcloud compute scp "\$1" "\$host:\$2" $in_zone --quiet || return
  done
}
# The same code and libraries on every machine; quick where they are there already.
setup() {
$({
  echo "push $(quote "$logs/code.tar.gz") code.tar.gz"
  echo "everywhere 'mkdir -p vf && tar -xzf code.tar.gz -C vf'"
  [[ ! ${option[constraints]} ]] || echo "push $(quote "${option[constraints]}") vf/constraints.txt"
  echo "everywhere 'bash vf/launch/host.sh setup ${option[accelerator]}'"
} | chain)
}
E
}
stop() { echo "everywhere 'bash vf/launch/host.sh stop'"; }
# TPU machines find one another by themselves; GPU machines get flags with the name of the first.
run() {
  local command
  command="bash vf/launch/host.sh run $(quote "${arguments[@]}")"
  [[ ${option[accelerator]} == tpu || $hosts == 1 ]] ||
    command+=" --coordinator=@FIRST@:8476 --processes=$hosts --process=@PROCESS@"
  echo "everywhere $(quote "$command")"
}

case $action in
  create)
    perform <<E
set -euo pipefail
$(prepare)
$(create)
E
    ;;
  setup)
    perform <<E
set -euo pipefail
$(archive "$logs")
$(log_folder "$logs")
$(functions)
$(find_hosts)
setup
E
    ;;
  run)
    need workdir
    collect_arguments run
    perform <<E
set -euo pipefail
$(functions)
$(find_hosts)
$(log_folder "$logs")
# Left-over processes and lockfiles are removed first: on every machine, before any of them starts.
$(stop)
$(run)
E
    ;;
  logs | status | stop)
    case $action in
      logs) command='bash vf/launch/host.sh log' ;;
      status) command='systemctl is-active vf; tail -n 3 vf.log' ;;
      stop) command='bash vf/launch/host.sh stop' ;;
    esac
    perform <<E
set -euo pipefail
$(functions)
$group list-instances $name $in_zone
$(find_hosts)
$(log_folder "$logs")
everywhere $(quote "$command") || true
tail -n +1 "\$started"/*.log
E
    ;;
  delete)
    perform <<E
# The group with its machines; then its template, and the policy that only slices have.
$(delete)
gcloud compute instance-templates delete $name --project=$project --quiet
gcloud compute resource-policies delete $name --region=$region --project=$project --quiet || true
E
    ;;
  train | evaluate | sample)
    need workdir
    bucket workdir
    collect_arguments "$action"
    perform <<E
#!/usr/bin/env bash
set -euo pipefail
$(archive "$logs")
$(prepare)

$(functions)

$(failures)

complete=no
while true; do
  # 1. The group: made where there is none; waited for; created again where a machine of it has gone.
  $(find_hosts)
  echo "\$(date +%T) $name: \${#hosts[@]} of $hosts machines"
  if ! $group describe $name $in_zone >/dev/null 2>&1; then
    complete=no
    $(create) || { failed \$? 'making the group'; continue; }
    crashes=0
    continue
  elif ((\${#hosts[@]} < $hosts)); then
    # Gone since it was whole; or, if this loop was started again, stopped (a preempted machine is) and not on its way.
    stopped=\$($group list-instances $name $in_zone --filter='instanceStatus:(STOPPING STOPPED TERMINATED)' --format='value(name)' 2>/dev/null || true)
    if [[ \$complete == yes || \$stopped ]]; then $(delete) || true; fi
    sleep 30
    continue
  fi
  complete=yes

  # 2. Every machine is made ready. Where that fails, one of them may be booting, or have gone: look again.
  $(log_folder "$logs")
  setup || { failed \$? setup; continue; }

  # 3. What an earlier start has left (a process, libtpu's lockfile) is removed first, on every machine.
  $(stop) || { failed \$? cleanup; continue; }

  # 4. One start. It resumes from the last checkpoint.
  status=0
  $(run) || status=\$?

$(verdict "launch/gce.sh delete --name=$name $in_zone")
done
E
    ;;
esac
