#!/usr/bin/env bash
# TPU slices of the Cloud TPU API (v4, v5e, v5p, v6e).
#
#   launch/tpu_vm.sh train|evaluate|sample --name= --zone= --type= --workdir=gs://... [FLAGS] -- --config=... [vf.main]
#       requests the slice, sets up every worker and runs; after a preemption requests it again and resumes
#   launch/tpu_vm.sh create|setup|run|logs|status|stop|delete ...         one step of it
#
# FLAGS: --project= --runtime= (TPU software version; by --type) --revision=HEAD (of the code) --constraints=FILE
# (pip freeze of another run) --spot --direct (no queue) --autocheckpoint --restarts=20 (after crashes) --dry-run
set -euo pipefail
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

choose_action "train evaluate sample create setup run logs status stop delete" "$@"
shift
option=([name]="" [zone]="" [type]="" [project]="" [workdir]="" [runtime]="" [revision]=HEAD [constraints]=""
  [spot]=no [direct]=no [autocheckpoint]=no [restarts]=20 [dry_run]=no)
parse "$@"
need name zone
names name
number restarts
name=${option[name]}
logs=logs/$name

where=("--zone=${option[zone]}")
[[ ! ${option[project]} ]] || where+=("--project=${option[project]}")
in_zone=$(quote "${where[@]}")
vm="gcloud compute tpus tpu-vm"
if [[ ${option[direct]} == yes ]]; then
  slices=$vm state_field=state force="" refused="sleep 60" # mostly there is no room
else
  slices="gcloud compute tpus queued-resources" state_field=state.state force=" --force" # with the slice it holds
  refused="failed \$? 'asking for the slice'"
fi

# The TPU software version that goes with the accelerator: its driver matters, jax brings its own libtpu.
runtime_of() {
  case $1 in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) echo tpu-ubuntu2204-base ;;
  esac
}

# Commands, each as text; they are joined to recipes below.

# On every worker, always: one that is left out hangs the others. $2: another flag.
everywhere() { echo "$vm ssh $name $in_zone --worker=all ${2:+$2 }--command=$(quote "$1")"; }
push() { echo "$vm scp $(quote "$1") $name:$2 $in_zone --worker=all"; }
state() { echo "$slices describe $name $in_zone --format='value($state_field)'"; }
delete() { echo "$slices delete $name $in_zone --quiet$force"; }
stop() { everywhere 'bash vf/launch/host.sh stop'; }
# The output of a start goes to a separate folder, one file per worker.
run() { everywhere "bash vf/launch/host.sh run $(quote "${arguments[@]}")" "--output-directory=\"\$started\""; }
create() {
  local runtime=${option[runtime]:-$(runtime_of "${option[type]}")} command
  if [[ ${option[direct]} == yes ]]; then
    command="compute tpus tpu-vm create $name $(quote "--version=$runtime")"
  else
    command="compute tpus queued-resources create $name --node-id=$name $(quote "--runtime-version=$runtime")"
  fi
  command+=" $in_zone $(quote "--accelerator-type=${option[type]}") --scopes=cloud-platform"
  [[ ${option[spot]} == no ]] || command+=" --spot"
  # The flag is in the alpha track only.
  if [[ ${option[autocheckpoint]} == yes ]]; then
    echo "gcloud alpha $command --autocheckpoint-enabled"
  else
    echo "gcloud $command"
  fi
}
setup() {
  push "$logs/code.tar.gz" code.tar.gz
  everywhere 'mkdir -p vf && tar -xzf code.tar.gz -C vf'
  [[ ! ${option[constraints]} ]] || push "${option[constraints]}" vf/constraints.txt
  everywhere 'bash vf/launch/host.sh setup tpu'
}

case $action in
  create)
    need type
    perform <<E
# The slice; a queued resource waits for capacity.
$(create)
E
    ;;
  setup)
    perform <<E
set -euo pipefail
$(archive "$logs")
$(setup)
E
    ;;
  run)
    need workdir
    collect_arguments run
    perform <<E
set -euo pipefail
# Left-over processes and lockfiles are removed first: on every worker, before any worker starts.
$(stop)
# The output of worker I goes to I.log on this machine.
$(log_folder "$logs")
$(run)
E
    ;;
  logs)
    perform <<E
$(everywhere 'bash vf/launch/host.sh log')
E
    ;;
  status)
    perform <<E
$(state)
$(everywhere 'systemctl is-active vf; tail -n 3 vf.log')
E
    ;;
  stop)
    perform <<E
# vf.main gets SIGTERM, saves a checkpoint and ends, on every worker. The slice stays, and costs: delete it too.
$(stop)
E
    ;;
  delete)
    perform <<E
$(delete)
E
    ;;
  train | evaluate | sample)
    need type workdir
    bucket workdir
    collect_arguments "$action"
    perform <<E
#!/usr/bin/env bash
set -euo pipefail
$(archive "$logs")

# The same code and libraries on every worker; quick where they are there already.
setup() {
$(setup | chain)
}

$(failures)

while true; do
  # 1. The slice: requested where there is none, deleted where it was preempted, else waited for.
  state=\$($(state) 2>/dev/null || echo NONE)
  echo "\$(date +%T) $name: \$state"
  case \$state in
    ACTIVE | READY) ;;
    NONE)
      $(create) || { $refused; continue; }
      crashes=0
      continue
      ;;
    FAILED | SUSPENDED | PREEMPTED | TERMINATED | STOPPED)
      $(delete) || sleep 60
      continue
      ;;
    *)
      sleep 30
      continue
      ;;
  esac

  # 2. Every worker is made ready. Where that fails, one of them may just have gone: look again.
  setup || { failed \$? setup; continue; }

  # 3. What an earlier start has left (a process, libtpu's lockfile) is removed first, on every worker.
  $(stop) || { failed \$? cleanup; continue; }

  # 4. One start. It resumes from the last checkpoint. The output of worker I goes to I.log on this machine.
  $(log_folder "$logs")
  status=0
  $(run) || status=\$?

$(verdict "launch/tpu_vm.sh delete --name=$name $in_zone")
done
E
    ;;
esac
