# shellcheck shell=bash
# Functions that the launchers share; sourced, not run.
#
# A launcher writes a recipe, a bash script of commands and comments, and passes it to `perform`: with --dry-run it is
# printed, otherwise run. The printed text is therefore the one that would be run, loops and restarts included.

# Every launcher fills `option` with its flags and their defaults; a switch has the default "no".
declare -A option
flags=() # of vf.main, verbatim: what follows after --

# Prints one sentence on what was expected and exits with status 2: bad input, which a restart cannot correct.
fail() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  exit 2
}

# The words, quoted for a shell only where they need it.
quote() {
  local word separator=""
  for word in "$@"; do
    if [[ $word == *[!-A-Za-z0-9_./:=,@%+]* || ! $word ]]; then
      word=\'${word//\'/\'\\\'\'}\'
    fi
    printf '%s%s' "$separator" "$word"
    separator=" "
  done
}

# For --help: prints the comment at the top of the launcher.
for word in "$@"; do
  [[ $word != -- ]] || break
  if [[ $word == @(-h|--help) ]]; then
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
    exit 0
  fi
done

# --dry-run alone shows the recipe of an example, which these are the words of.
declare -A examples=(
  [local.sh]="2 --config=configs/demo.py --workdir=runs/demo2"
  [tpu_vm.sh]="train --name=ucf --zone=us-east5-b --type=v6e-16 --workdir=gs://bucket/ucf -- --config=configs/ucf101.py"
  [gce.sh]="train --name=ucf --project=p --zone=us-east5-b --machine=ct6e-standard-4t --topology=4x4 --hosts=4 --workdir=gs://bucket/ucf -- --config=configs/ucf101.py"
  [gke.sh]="train --name=ucf --image=us-east5-docker.pkg.dev/p/r/vf:a1b2c3 --workdir=gs://bucket/ucf --type=tpu-v6e-slice --topology=4x4 --hosts=4 --chips=4 -- --config=configs/ucf101.py"
  [slurm.sh]="train --name=ucf --workdir=/shared/ucf --nodes=4 --gpus=8 -- --config=configs/ucf101.py"
)
if [[ $# == 1 && $1 == --dry-run && -v examples[${0##*/}] ]]; then
  read -ra words <<<"${examples[${0##*/}]}"
  set -- "${words[0]}" --dry-run "${words[@]:1}" # of the launcher itself, since it sources this file without arguments
  printf '# This is the recipe of: launch/%s %s\n\n' "${0##*/}" "$*"
fi

# The first word is the action. $1: the valid actions, separated by spaces; $2: the word.
action=""
choose_action() {
  action=${2-}
  [[ $action && " $1 " == *" $action "* ]] ||
    fail "the first word must be one of $1, got '$action'; for an example, launch/${0##*/} --dry-run"
}

# Reads --name=value, --switch and, after --, the flags of vf.main. VF_NAME in the environment stands for
# --name; dashes in names are underscores in `option`.
parse() {
  local key value variable
  for key in "${!option[@]}"; do
    variable=VF_${key^^}
    [[ -v $variable ]] && option[$key]=${!variable}
  done
  while (($#)); do
    case $1 in
      --) shift; flags=("$@"); return ;;
      --*=*) key=${1%%=*} value=${1#*=} ;;
      --*) key=$1 value=yes ;;
      *) fail "did not expect '$1': flags are written --name=value, and those of vf.main follow after --" ;;
    esac
    key=${key#--} key=${key//-/_}
    [[ $key && -v option[$key] ]] ||
      fail "unknown flag --$key: known are $(printf '%s\n' "${!option[@]}" | sort | sed 's/^/--/; s/_/-/g' | paste -sd' '); flags of vf.main follow after --"
    [[ $1 == *=* || ${option[$key]} == @(yes|no) ]] || fail "$1 needs a value: write $1=VALUE"
    option[$key]=$value
    shift
  done
}

# Each option named must have a value.
need() {
  local key
  for key in "$@"; do
    [[ ${option[$key]} ]] || fail "--${key//_/-} is missing: give --${key//_/-}=VALUE, or set VF_${key^^}"
  done
}

# Each option named must be a whole number.
number() {
  local key
  for key in "$@"; do
    [[ ${option[$key]} =~ ^[0-9]+$ ]] || fail "--${key//_/-} must be a whole number, got '${option[$key]}'"
  done
}

# The arguments of vf.main, as words of the array `arguments`: mode, run, a compilation cache that restarts and
# neighbouring jobs share, then the caller's flags, which take precedence.
# $1: the mode, or `run` where it is among the caller's flags. $2: the folder, where it is not option[workdir].
arguments=()
collect_arguments() {
  local mode=$1 cache=${option[workdir]%/*}/xla word
  [[ ${option[workdir]} == */* ]] || cache=xla
  for word in "${flags[@]}"; do
    [[ $word != --workdir* ]] || fail "give --workdir to ${0##*/}, before --: the logs go there too"
    [[ $word != --mode* || $mode == run ]] || fail "the mode is the first word (${0##*/} $mode): leave --mode out"
  done
  arguments=("--workdir=${2:-${option[workdir]}}" "--compile_cache=$cache")
  [[ $mode == run ]] || arguments+=("--mode=$mode")
  arguments+=("${flags[@]}")
  [[ " ${flags[*]}" == *" --config="* ]] || fail "--config is missing: after --, give --config=configs/NAME.py"
}

# Prints the recipe on stdin, or runs it.
perform() {
  local recipe
  recipe=$(cat)
  if [[ ${option[dry_run]} == yes ]]; then
    printf '%s\n' "$recipe"
  else
    bash -c "$recipe"
  fi
}

# Pieces of recipes that both kinds of cloud machines need.

# Each option named becomes part of commands and of machines' names.
names() {
  local key
  for key in "$@"; do
    [[ ${option[$key]} =~ ^[a-z]([-a-z0-9]{0,40}[a-z0-9])?$ ]] ||
      fail "--$key must be lower-case letters, digits and dashes, from a letter on, got '${option[$key]}'"
  done
}

# Each option named must be a path that outlives machines.
bucket() {
  local key
  for key in "$@"; do
    [[ ${option[$key]} == gs://*/* ]] ||
      fail "--$key must be on Cloud Storage, as gs://bucket/run: the machines' own disks go with them, got '${option[$key]}'"
  done
}

# The code as one archive, $1/code.tar.gz.
archive() {
  echo "# The committed code of one revision, as one archive: the same on every machine, and after every restart."
  echo "mkdir -p $(quote "$1")"
  echo "git archive --format=tar.gz $(quote "--output=$1/code.tar.gz" "${option[revision]}")"
}

# A folder for the output of this start, below $1.
log_folder() { echo "started=$1/\$(date +%Y%m%d-%H%M%S) && mkdir -p \"\$started\""; }

# Lines of commands as one condition, indented.
chain() { sed 's/^/  /; $!s/$/ \&\&/'; }

# The beginning of a loop: how it counts failures.
failures() {
  cat <<E
# After ${option[restarts]} failures on the same machines the cause is one that a restart does not remove.
crashes=0
failed() { # status, of what
  crashes=\$((crashes + 1))
  echo "\$2: exit status \$1 (failure \$crashes; ${option[restarts]} are forgiven)" >&2
  if ((crashes > ${option[restarts]})); then exit "\$1"; fi
  sleep 30
}
E
}

# The end of a loop's round: how it handles $status. $1: the command that deletes the machines.
verdict() {
  cat <<E
  # 5. Done, or bad input, which would fail again: the end. Anything else starts again.
  case \$status in
    0)
      echo $(quote "done. The machines are still there, and cost: $1")
      exit 0
      ;;
    2) exit 2 ;;
    143) sleep 30 ;; # stopped by a signal, mostly of a preemption, which is visible only after a while; it has saved a checkpoint
    *) failed "\$status" vf.main ;;
  esac
E
}
