#!/usr/bin/env bash
# The steps of one machine of a run; tpu_vm.sh and gce.sh call it on all of them over ssh.
#
#   host.sh setup cpu|cuda|tpu     makes .venv
#   host.sh stop                   ends vf.main (it saves a checkpoint first), and left-over processes
#   host.sh run [FLAGS]            starts vf.main, or finds it running; shows its log until it ends; its exit status
#   host.sh log                    shows the log
#
# vf.main runs as the systemd unit `vf`: it outlives a lost connection, cannot run twice, and gets SIGTERM when the
# machine is preempted. Its log is ~/vf.log, and is copied to WORKDIR/logs where that is on Cloud Storage.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
log=$HOME/vf.log
outcome=$HOME/vf.status

setup() {
  local python=""
  # Images bring Python 3.10 or older; vf needs 3.11.
  for candidate in python3.13 python3.12 python3.11; do
    "$candidate" -c 'import ensurepip, venv' 2>/dev/null && python=$candidate && break
  done
  if [[ ! $python ]]; then
    command -v uv >/dev/null || curl --location --silent --show-error --fail https://astral.sh/uv/install.sh | sh
    PATH=$HOME/.local/bin:$PATH
    uv python install 3.12
    python=$(uv python find 3.12)
  fi
  command -v make >/dev/null || sudo apt-get install --yes --quiet make
  # Every machine resolves the same requirements; constraints.txt, where it was pushed, makes them the same versions
  # on another day too.
  [[ ! -f constraints.txt ]] || export PIP_CONSTRAINT=$PWD/constraints.txt
  make install "ACCELERATOR=$1" "PYTHON=$python"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-cloud.txt
}

running() { systemctl is-active --quiet vf; }

stop() {
  sudo systemctl stop vf 2>/dev/null || true # SIGTERM, then SIGKILL after TimeoutStopSec; not there is fine
  sudo systemctl reset-failed vf 2>/dev/null || true
  # Left over from a start by hand: two processes cannot share a chip.
  shopt -s nullglob
  local chips=(/dev/accel* /dev/vfio/[0-9]*)
  if ((${#chips[@]})) && sudo fuser --silent --kill -TERM "${chips[@]}"; then
    sleep 10
    sudo fuser --silent --kill "${chips[@]}" || true
  fi
  # A killed process leaves its lockfile, and the next process then finds no TPU.
  sudo rm -f /tmp/libtpu_lockfile
}

run() {
  touch "$log"
  tail -n 0 -F "$log" 2>/dev/null &
  local tail=$!
  if ! running; then
    rm -f "$outcome"
    sudo systemd-run --unit=vf --collect --quiet --uid="$(id -un)" --working-directory="$PWD" \
      --property=StandardOutput="append:$log" --property=StandardError="append:$log" \
      --property=KillMode=mixed --property=TimeoutStopSec=180 \
      --property=LimitMEMLOCK=infinity --property=LimitNOFILE=1048576 \
      bash "$PWD/launch/host.sh" work "$@"
  fi
  while running; do sleep 5; done
  sleep 1 # the log's last lines
  kill "$tail"
  [[ -f $outcome ]] || { echo "vf.main was killed on $(hostname); see the end of the log" >&2; return 137; }
  return "$(<"$outcome")"
}

# Inside the unit: vf.main, SIGTERM passed on to it, its log copied now and then, its exit status kept.
work() {
  local workdir="" word child publisher status=0
  PATH=$PATH:/snap/bin # where Ubuntu's images have gcloud
  for word in "$@"; do [[ $word != --workdir=* ]] || workdir=${word#*=}; done
  publish() {
    [[ $workdir != gs://* ]] || gcloud storage cp --quiet "$log" "$workdir/logs/$(hostname).log" >/dev/null 2>&1 || true
  }
  .venv/bin/python -m vf.main "$@" &
  child=$!
  trap 'kill -TERM "$child" 2>/dev/null || true' TERM
  while sleep 300; do publish; done &
  publisher=$!
  wait "$child" || status=$?
  # A trapped signal ends `wait` early: the process is still saving.
  while kill -0 "$child" 2>/dev/null; do
    status=0
    wait "$child" || status=$?
  done
  echo "$status" >"$outcome"
  kill "$publisher" 2>/dev/null || true
  publish
  return "$status"
}

case ${1-} in
  setup | stop | run | work) "$@" ;;
  log) tail -n 100 "$log" ;;
  *) echo "host.sh: expected setup, stop, run or log, got '${1-}'" >&2; exit 2 ;;
esac
