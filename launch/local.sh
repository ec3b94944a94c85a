#!/usr/bin/env bash
# Several processes of vf.main on one machine, over its GPUs, or on its CPU cores.
#
#   launch/local.sh N [--restarts=K] [--grace=S] [--devices=D] [--logs=DIR] [--dry-run] [flags of vf.main]
#   launch/local.sh 2 --config=configs/demo.py --workdir=runs/demo2
#
# GPUs (CUDA_VISIBLE_DEVICES, or all that nvidia-smi shows) are divided evenly; without any, each process makes D CPU
# devices (1, or JAX_NUM_CPU_DEVICES). When one process fails, the others get S seconds (20) to end by themselves, then
# SIGTERM, then SIGKILL after S more. The first status that is not 0 is returned. A run that failed starts again up to
# K times (0), but not after status 2, bad input. Ctrl-C and SIGTERM are passed on, and end the restarts; the second
# Ctrl-C kills.
# Logs: DIR/process_I.log, by default below WORKDIR/logs; process 0 is shown on the terminal too.
set -euo pipefail
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
python=${PYTHON:-$([[ -x .venv/bin/python ]] && echo .venv/bin/python || echo python3)}

[[ ${1-} =~ ^[1-9][0-9]*$ ]] ||
  fail "the first word must be the number of processes, got '${1-}': launch/local.sh 2 --config=configs/demo.py --workdir=runs/demo2"
processes=$1
shift
option=([restarts]=0 [grace]=20 [devices]="${JAX_NUM_CPU_DEVICES:-1}" [logs]="" [dry_run]=no)
for word in "$@"; do
  case $word in
    --restarts=* | --grace=* | --devices=* | --logs=*) name=${word%%=*} && option[${name#--}]=${word#*=} ;;
    --dry-run) option[dry_run]=yes ;;
    --coordinator=* | --process=* | --processes=*) fail "${word%%=*} is what this script sets: leave it out" ;;
    *) flags+=("$word") ;;
  esac
done
number restarts grace devices
workdir=""
for word in "${flags[@]}"; do [[ $word != --workdir=* ]] || workdir=${word#*=}; done
[[ $workdir ]] || fail "--workdir is missing: give the run's folder, as --workdir=runs/demo2"
if [[ ! ${option[logs]} ]]; then # a shell cannot write to a bucket
  [[ $workdir == *://* ]] && option[logs]=logs/${workdir##*/} || option[logs]=$workdir/logs
fi

# Which accelerators each process sees, as a NAME=VALUE for its environment.
gpus=()
if [[ ${JAX_PLATFORMS:-} == cpu ]]; then
  :
elif [[ -v CUDA_VISIBLE_DEVICES ]]; then
  IFS=, read -ra gpus <<<"$CUDA_VISIBLE_DEVICES"
elif command -v nvidia-smi >/dev/null; then
  mapfile -t gpus < <(nvidia-smi -L 2>/dev/null | sed -n 's/^GPU \([0-9]*\):.*/\1/p')
fi
share=$((${#gpus[@]} / processes))
((share * processes == ${#gpus[@]})) ||
  fail "${#gpus[@]} GPUs cannot be divided evenly among $processes processes: choose some with CUDA_VISIBLE_DEVICES, or another number"
devices_of() {
  if ((share)); then
    local IFS=,
    printf 'CUDA_VISIBLE_DEVICES=%s' "${gpus[*]:$(($1 * share)):share}"
  else
    printf 'JAX_NUM_CPU_DEVICES=%s' "${option[devices]}"
  fi
}

# A port that is free now; another one at every start, as the old one may still be closing.
free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# The command of process $1, at port $2.
command_of() {
  command=(env "$(devices_of "$1")" "$python" -m vf.main "--coordinator=127.0.0.1:$2" "--processes=$processes"
    "--process=$1" "${flags[@]}")
}

if [[ ${option[dry_run]} == yes ]]; then
  echo "# $processes processes, which find one another at a free port (here 12345)."
  echo "mkdir -p $(quote "${option[logs]}")"
  for ((i = 0; i < processes; i++)); do
    command_of "$i" 12345
    echo "$(quote "${command[@]}") >>$(quote "${option[logs]}/process_$i.log") 2>&1 &"
  done
  echo "wait"
  echo "# When one fails, the others are ended after ${option[grace]} s; exit status 2 (bad input) is final, any other"
  echo "# starts them all again, up to ${option[restarts]} times: they resume from the last checkpoint."
  exit
fi

pids=()
stopped=""
# Sends the signal to every process that still runs. A process that has ended is not an error.
signal_all() {
  local pid
  for pid in "${pids[@]}"; do kill "-$1" "$pid" 2>/dev/null || true; done
}
# Ctrl-C reaches every process that belongs to the terminal's foreground; background jobs of a script ignore SIGINT,
# so it is passed on as SIGTERM: they save a checkpoint at the next step. The second Ctrl-C does not wait for that.
trap 'stopped=yes; signal_all TERM' TERM
trap 'if [[ $stopped ]]; then signal_all KILL; else stopped=yes && signal_all TERM; fi' INT

# One start of all processes. Returns the first status that is not 0.
attempt() {
  local port i pid deadline="" killed="" first=0 status shown="${option[logs]}/process_0.log"
  port=$(free_port)
  pids=()
  mkdir -p "${option[logs]}"
  touch "$shown"
  tail -c "+$(($(wc -c <"$shown") + 1))" -F "$shown" 2>/dev/null & # what is new in it
  local tail=$!
  for ((i = 0; i < processes; i++)); do
    command_of "$i" "$port"
    "${command[@]}" </dev/null >>"${option[logs]}/process_$i.log" 2>&1 &
    pids+=($!)
  done
  local waiting=("${pids[@]}") left
  [[ ! $stopped ]] || signal_all TERM # the signal came while they were being started
  while ((${#waiting[@]})); do
    left=()
    for pid in "${waiting[@]}"; do
      if kill -0 "$pid" 2>/dev/null; then
        left+=("$pid")
        continue
      fi
      status=0
      wait "$pid" || status=$?
      if ((status && !first)); then
        first=$status
        deadline=$((SECONDS + option[grace]))
      fi
    done
    waiting=("${left[@]}")
    if [[ $deadline ]] && ((SECONDS >= deadline)); then
      if [[ $killed || $stopped ]]; then signal_all KILL; else signal_all TERM; fi
      killed=yes
      deadline=$((SECONDS + option[grace]))
    fi
    sleep 0.2
  done
  kill "$tail" 2>/dev/null || true
  wait "$tail" 2>/dev/null || true
  pids=()
  return "$first"
}

for ((start = 0; ; start++)); do
  status=0
  attempt || status=$?
  if [[ $stopped ]] || ((status == 0 || status == 2 || start >= option[restarts])); then exit "$status"; fi
  echo "local.sh: exit status $status; starting again ($((start + 1)) of ${option[restarts]})" >&2
done
