#!/usr/bin/env bash
# A SLURM cluster: writes a batch script and submits it. jax finds the other tasks by srun's variables.
#
#   launch/slurm.sh train    --name= --workdir=DIR --nodes=4 --gpus=8 [FLAGS] -- --config=... [flags of vf.main]
#   launch/slurm.sh evaluate --name= --workdir=DIR [--after=JOB] ...     beside training: starts when JOB has started
#   launch/slurm.sh sample   --name= --workdir=DIR --array=0-3 ...       job I draws with seed I, to DIR/more/I
#
# DIR is on a file system that all nodes share. FLAGS: --tasks=node|gpu (one process per node, or per GPU) --cpus=8 (per
# GPU) --time=24:00:00 --warning=300 (seconds before the time limit) --restarts=20 (after crashes) --partition=
# --account= --qos= --python=.venv/bin/python --dry-run
set -euo pipefail
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

choose_action "train evaluate sample" "$@"
shift
option=([name]="" [workdir]="" [nodes]=1 [gpus]=1 [tasks]=node [cpus]=8 [time]=24:00:00 [warning]=300 [restarts]=20
  [partition]="" [account]="" [qos]="" [python]=.venv/bin/python [after]="" [array]="" [dry_run]=no)
parse "$@"
need name workdir
names name
number nodes gpus cpus warning restarts
((option[nodes] && option[gpus] && option[cpus])) || fail "--nodes, --gpus and --cpus must be 1 or more"
[[ ${option[tasks]} == @(node|gpu) ]] || fail "--tasks must be node or gpu, got '${option[tasks]}'"
[[ ! ${option[array]} || $action == sample ]] || fail "--array is for sample: processes of one run belong in one job"
[[ ! ${option[array]} || ${option[array]} =~ ^[0-9,%-]+$ ]] || fail "--array must be like 0-3, got '${option[array]}'"
[[ ! ${option[after]} || ${option[after]} =~ ^[0-9]+$ ]] || fail "--after must be a job's number, got '${option[after]}'"
[[ ${option[workdir]} != *[[:space:]]* ]] || fail "--workdir must be without spaces: SLURM's directives cannot quote them"
workdir=${option[workdir]} name=${option[name]}

if [[ ${option[array]} ]]; then # each draws to a separate folder, from the run's weights
  flags+=("--config.init_from=$workdir" "--config.sample.seed=@I@")
  collect_arguments sample "$workdir/more/@I@"
else
  collect_arguments "$action"
fi
command=$(quote "${option[python]}" -m vf.main "${arguments[@]}")
command=${command//@I@/\"\$SLURM_ARRAY_TASK_ID\"}
logs=$workdir/logs
script=$logs/$name-$action.sbatch

tasks=1 per_task=${option[gpus]}
[[ ${option[tasks]} == node ]] || tasks=${option[gpus]} per_task=1
devices=""
if [[ ${option[tasks]} == node ]]; then
  devices="# This one process has all the node's GPUs; jax would take one of them under SLURM.
export JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((option[gpus] - 1)))
"
fi
directives=""
for key in partition account qos array; do
  [[ ! ${option[$key]} ]] || directives+="#SBATCH --$key=${option[$key]}"$'\n'
done

batch=$(
  cat <<E
#!/bin/bash
#SBATCH --job-name=$name-$action
#SBATCH --nodes=${option[nodes]}
#SBATCH --ntasks-per-node=$tasks
#SBATCH --gpus-per-node=${option[gpus]}
#SBATCH --cpus-per-task=$((option[cpus] * per_task))
#SBATCH --time=${option[time]}
${directives}# One log for all tasks and all restarts; each line has the number of its task.
#SBATCH --output=$logs/%x-$([[ ${option[array]} ]] && echo %A-%a || echo %j).log
#SBATCH --open-mode=append
# A preempted job goes back to the queue. Before the time limit this script gets SIGTERM, early enough to save.
#SBATCH --requeue
#SBATCH --signal=B:TERM@${option[warning]}
set -uo pipefail
cd $(quote "$PWD") || exit 2
${devices}
# When one task has ended, the others get a minute to end by themselves: they would wait for it for ever.
srun --label --kill-on-bad-exit=0 --wait=60 --ntasks-per-node=$tasks --gpus-per-node=${option[gpus]} --cpus-per-task=$((option[cpus] * per_task)) \\
  $command &
step=\$!
job=\${SLURM_ARRAY_JOB_ID:+\${SLURM_ARRAY_JOB_ID}_\$SLURM_ARRAY_TASK_ID}
job=\${job:-\$SLURM_JOB_ID}
# All tasks get the signal: they agree on a step, save a checkpoint and end with 143. (srun itself would kill them.)
trap 'scancel --signal=TERM "\$job"' TERM
wait "\$step"
status=\$?
while kill -0 "\$step" 2>/dev/null; do # the signal ended the first wait
  wait "\$step"
  status=\$?
done

# 0: done. 2: bad input, which would fail again. 143: out of time, saved. Anything else: a crash, or a node is missing.
case \$status in
  0 | 2) exit "\$status" ;;
  143) ;;
  *) if ((\${SLURM_RESTART_COUNT:-0} >= ${option[restarts]})); then exit "\$status"; fi ;;
esac
# A job that was cancelled is not requeued.
[[ \$(squeue --noheader --format=%T --jobs="\$job") == RUNNING ]] || exit "\$status"
echo "exit status \$status; back to the queue (restart \$((\${SLURM_RESTART_COUNT:-0} + 1)))"
exec scontrol requeue "\$job"
E
)

perform <<E
set -euo pipefail
mkdir -p $(quote "$logs")
cat >$(quote "$script") <<'SBATCH'
$batch
SBATCH
# Prints the job's number, for --after of an evaluation job, and for scancel.
sbatch --parsable ${option[after]:+--dependency=after:${option[after]} }$(quote "$script")
E
