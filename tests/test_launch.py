"""The launchers: their recipes are run, against stand-ins for gcloud, sbatch and python that note what they get."""

import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
SHELLCHECK = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")

# Flags of vf.main with everything that a shell may spoil.
FLAGS = [
    "--config=configs/ucf101.py",
    "--config.data.source=a  b",
    """--config.init_from=it's "$HOME" `x` $(y) \\ * &""",
]
TPU = ["--name=run1", "--zone=us-east5-b", "--project=p1", "--type=v6e-16", "--workdir=gs://b/runs/ucf"]
GCE = ["--name=run1", "--zone=us-east5-b", "--project=p1", "--hosts=4", "--workdir=gs://b/runs/ucf"]
SLICE = [*GCE, "--machine=ct6e-standard-4t", "--topology=4x4"]
GPUS = [*GCE, "--machine=a3-highgpu-8g"]
GKE = ["--name=run1", "--image=r/vf:1", "--workdir=gs://b/runs/ucf"]
ONE_TPU = [*GKE, "--type=tpu-v6e-slice", "--topology=1x1", "--chips=1"]
GKE_TPU = [*GKE, "--type=tpu-v6e-slice", "--topology=4x4", "--hosts=4"]
GKE_GPU = [*GKE, "--type=nvidia-h100-80gb", "--hosts=4", "--chips=8", "--spot"]
SLURM = ["--name=run1", "--workdir=runs/ucf", "--nodes=4", "--gpus=8"]

RECIPES = {
    "local": ["local.sh", "2", "--workdir=runs/x", *FLAGS],
    **{f"tpu {a}": ["tpu_vm.sh", a, *TPU, "--", *FLAGS] for a in ("train", "evaluate", "sample", "run", "create")},
    **{f"tpu {a}": ["tpu_vm.sh", a, *TPU] for a in ("setup", "logs", "status", "stop", "delete")},
    "tpu direct": ["tpu_vm.sh", "train", *TPU, "--direct", "--spot", "--autocheckpoint", "--", *FLAGS],
    **{f"gce {a}": ["gce.sh", a, *SLICE, "--", *FLAGS] for a in ("train", "evaluate", "sample", "run", "create")},
    **{f"gce {a}": ["gce.sh", a, *SLICE] for a in ("setup", "logs", "status", "stop", "delete")},
    "gce gpus": ["gce.sh", "train", *GPUS, "--provisioning=flex-start", "--", *FLAGS],
    "slurm train": ["slurm.sh", "train", *SLURM, "--tasks=gpu", "--partition=gpu", "--account=a", "--", *FLAGS],
    "slurm evaluate": ["slurm.sh", "evaluate", *SLURM, "--after=12", "--", *FLAGS],
    "slurm sample": ["slurm.sh", "sample", *SLURM, "--array=0-3", "--", *FLAGS],
    "gke train": ["gke.sh", "train", *GKE_TPU, "--", *FLAGS],
    "gke gpus": ["gke.sh", "train", *GKE_GPU, "--", *FLAGS],
    "gke evaluate": ["gke.sh", "evaluate", *ONE_TPU, "--", *FLAGS],
    "gke sample": ["gke.sh", "sample", *ONE_TPU, "--samplers=4", "--", *FLAGS],
    "gke queues": ["gke.sh", "queues", "--type=tpu-v6e-slice", "--quota=32"],
    **{f"gke {a}": ["gke.sh", a, "--name=run1"] for a in ("logs", "status", "stop")},
    "gke image": ["gke.sh", "image", "--image=r/vf:1", "--type=tpu-v6e-slice"],
}


def clean_env(**changes: str) -> dict[str, str]:
    gone = ("CUDA_VISIBLE_DEVICES", "JAX_NUM_CPU_DEVICES", "JAX_PLATFORMS", "PYTHON")
    return {k: v for k, v in os.environ.items() if k not in gone and not k.startswith("VF_")} | changes


def launch(words: list[str], cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    command = [str(LAUNCH / words[0]), *words[1:]]
    return subprocess.run(command, cwd=cwd, env=clean_env(**env), capture_output=True, text=True, timeout=15)


@functools.cache
def recipe(name: str) -> str:
    """What a launcher prints with --dry-run."""
    words = RECIPES[name]
    at = words.index("--") if "--" in words else len(words)
    done = launch([*words[:at], "--dry-run", *words[at:]])
    assert done.returncode == 0, done.stderr
    return done.stdout


def stand_in(folder: Path, name: str, body: str) -> None:
    """A program `name` that runs `body` (bash), first on the path."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/bash\n{body}\n")
    (folder / name).chmod(0o755)


def path_with(folder: Path) -> str:
    return f"{folder}:{os.environ['PATH']}"


def wait_for(condition, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


# Scripts and recipes as text


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_scripts_are_valid_bash(script):
    assert subprocess.run(["bash", "-n", script]).returncode == 0


@pytest.mark.parametrize("script", [s for s in SCRIPTS if s.stem not in ("common", "host")], ids=lambda p: p.name)
@pytest.mark.parametrize("words", [["--help"], ["train", "--name=x", "-h"]])
def test_help_prints_the_script_s_header(script, words):
    done = subprocess.run([script, *words], capture_output=True, text=True)
    assert done.returncode == 0
    assert f"  launch/{script.name} " in done.stdout
    assert "\nset -euo" not in done.stdout
    assert "#" not in done.stdout.replace("#!", "")


@pytest.mark.parametrize("script", [s for s in SCRIPTS if s.stem not in ("common", "host")], ids=lambda p: p.name)
def test_dry_run_alone_shows_an_example(script):
    """The recipe of a command that it names, which can be given with changes."""
    done = launch([script.name, "--dry-run"])
    assert done.returncode == 0, done.stderr
    named, _, text = done.stdout.partition("\n\n")
    command = named.removeprefix(f"# This is the recipe of: launch/{script.name} ")
    assert "--config=configs/" in command
    assert text == launch([script.name, *command.split()]).stdout


@pytest.mark.skipif(SHELLCHECK is None, reason="shellcheck is not installed")
def test_scripts_and_recipes_are_clean(tmp_path):
    files = [str(s) for s in SCRIPTS]
    done = subprocess.run([SHELLCHECK, *files], cwd=LAUNCH, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    for i, name in enumerate(RECIPES):
        if not name.endswith(("evaluate", "create", "logs", "stop", "delete")):  # which others hold too
            (tmp_path / f"{i}.sh").write_text(recipe(name))
    files = [str(f) for f in sorted(tmp_path.iterdir())]
    done = subprocess.run([SHELLCHECK, "--shell=bash", "--severity=warning", *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_valid_bash(name):
    text = recipe(name)
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0
    if any(word in name for word in ("train", "evaluate", "sample", "local", "image")):
        assert "# " in text, "a recipe says why"


@pytest.mark.parametrize("name", [n for n in RECIPES if n.startswith("tpu")])
def test_tpu_commands_go_to_every_worker(name):
    lines = [line for line in recipe(name).splitlines() if "tpu-vm ssh" in line or "tpu-vm scp" in line]
    assert all("--worker=all" in line for line in lines)
    assert lines or "create" in name or "delete" in name


@pytest.mark.parametrize("name", ["tpu run", "tpu train", "gce run", "gce train"])
def test_cleanup_comes_before_the_start(name):
    text = recipe(name)
    assert 0 < text.index("host.sh stop") < text.index("host.sh run ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tpu_vm.sh"], "the first word must be one of train"),
        (["tpu_vm.sh", "train", "--name=x"], "--zone is missing"),
        (["tpu_vm.sh", "train", "--nam=x"], "unknown flag --nam"),
        (["tpu_vm.sh", "train", "--name", "x"], "write --name=VALUE"),
        (["tpu_vm.sh", "train", *TPU], "--config is missing"),
        (["tpu_vm.sh", "train", *TPU, "--workdir=runs/x", "--", *FLAGS], "must be on Cloud Storage"),
        (["tpu_vm.sh", "train", *TPU, "--", *FLAGS, "--mode=sample"], "leave --mode out"),
        (["tpu_vm.sh", "train", *TPU, "--name=A b", "--", *FLAGS], "lower-case letters"),
        (["gce.sh", "train", *GCE, "--machine=ct6e-standard-4t", "--", *FLAGS], "--topology is missing"),
        (["gce.sh", "train", *SLICE, "--provisioning=cheap", "--", *FLAGS], "--provisioning must be"),
        (["slurm.sh", "train", *SLURM, "--nodes=many", "--", *FLAGS], "--nodes must be a whole number"),
        (["slurm.sh", "train", *SLURM, "--array=0-3", "--", *FLAGS], "--array is for sample"),
        (["gke.sh", "evaluate", *GKE_TPU, "--", *FLAGS], "evaluate has one host"),
        (["gke.sh", "train", *GKE, "--", *FLAGS], "--type is missing"),
        (["local.sh", "--config=x"], "number of processes"),
        (["local.sh", "2", "--config=x"], "--workdir is missing"),
        (["local.sh", "2", "--workdir=x", "--process=1"], "leave it out"),
    ],
)
def test_launchers_answer_bad_input_in_one_sentence(words, message):
    done = launch(words)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_the_environment_stands_for_flags():
    done = launch(["tpu_vm.sh", "delete", "--dry-run"], VF_NAME="run2", VF_ZONE="z1")
    assert "delete run2 --zone=z1" in done.stdout


# Cloud machines: the loop, against a gcloud that follows a script


def cloud(folder: Path, states: list[str], statuses: list[int]) -> Path:
    """Stand-ins: gcloud reports `states` in turn, host.sh ends with `statuses` in turn; `calls` holds both."""
    (folder / "states").write_text("\n".join(states) + "\n")
    (folder / "statuses").write_text("".join(f"{s}\n" for s in statuses))
    host = folder / "home" / "vf" / "launch"
    host.mkdir(parents=True)
    take = 'next() { head -n 1 "$1"; sed -i 1d "$1"; }'
    (host / "host.sh").write_text(
        f"""{take}
(flock 9; echo "host $1" >>{folder}/calls) 9>>{folder}/lock
[[ $1 == run ]] || exit 0
shift
printf '%s\\n' "$@" >{folder}/arguments.$BASHPID
exit "$(flock {folder}/lock bash -c '{take}; next {folder}/statuses')"
"""
    )
    stand_in(folder / "bin", "sleep", "exec /bin/sleep 0.01")
    stand_in(folder / "bin", "tar", "")
    stand_in(folder / "bin", "git", f'echo "git $*" >>{folder}/calls')
    stand_in(
        folder / "bin",
        "gcloud",
        f"""{take}
case "$*" in
  *" describe "*queued* | *queued*" describe "* | *tpu-vm*" describe "*)
    state=$(next {folder}/states)
    [[ $state == NONE ]] && exit 1
    echo "$state" ;;
  *list-instances*STOPPED*) cat {folder}/stopped 2>/dev/null ;;
  *list-instances*) for host in $(next {folder}/states); do echo "$host"; done ;;
  *managed*" describe "*) [[ -f {folder}/group ]] ;;
  *instance-templates*" describe "* | *resource-policies*" describe "*) exit 1 ;;
  *" ssh "*)
    for word in "$@"; do case $word in --command=*) cd {folder}/home && exec bash -c "${{word#*=}}" ;; esac; done ;;
  *)
    (flock 9; echo "gcloud $*" >>{folder}/calls) 9>>{folder}/lock
    [[ ! -f {folder}/refused || $* != *\\ create\\ * ]] || exit 1
    case "$*" in
      *managed*create*) touch {folder}/group ;;
      *managed*delete*) rm {folder}/group ;;
    esac ;;
esac""",
    )
    return folder / "calls"


def events(calls: Path) -> list[str]:
    """The calls in order, a word or two for each."""
    words = []
    for line in calls.read_text().splitlines():
        known = ("git archive", "templates create", "policy", "create", "delete", "scp", "host")
        kind = next(k for k in known if k in line)
        words.append(line.removeprefix("host ") if kind == "host" else kind)
    return words


def test_a_tpu_slice_is_created_again_after_a_preemption(tmp_path):
    states = ["NONE", "WAITING_FOR_RESOURCES", "ACTIVE", "SUSPENDING", "SUSPENDED", "NONE", "ACTIVE"]
    calls = cloud(tmp_path, states, [143, 0])
    done = launch(RECIPES["tpu train"], cwd=tmp_path, PATH=path_with(tmp_path / "bin"))
    assert done.returncode == 0, done.stderr
    start = ["scp", "setup", "stop", "run"]
    assert events(calls) == ["git archive", "create", *start, "delete", "create", *start]
    for file in tmp_path.glob("arguments.*"):
        expected = ["--workdir=gs://b/runs/ucf", "--compile_cache=gs://b/runs/xla", "--mode=train", *FLAGS]
        assert file.read_text().splitlines() == expected


@pytest.mark.parametrize(
    ("statuses", "restarts", "ends", "starts"),
    [([2, 0], 20, 2, 1), ([1, 3, 0], 20, 0, 3), ([1, 5, 6, 0], 2, 6, 3), ([143, 143, 143, 0], 0, 0, 4)],
    ids=["bad input", "crash", "too many crashes", "preemptions"],
)
@pytest.mark.parametrize("kind", ["tpu", "gce"])
def test_which_statuses_start_again(tmp_path, kind, statuses, restarts, ends, starts):
    if kind == "tpu":
        words = ["tpu_vm.sh", "train", *TPU]
        states = ["ACTIVE"] * 9
    else:
        words = ["gce.sh", "train", *GCE, "--machine=ct6e-standard-8t", "--hosts=1"]
        states = ["h0"] * 9
        (tmp_path / "group").touch()
    calls = cloud(tmp_path, states, statuses)
    done = launch([*words, f"--restarts={restarts}", "--", *FLAGS], cwd=tmp_path, PATH=path_with(tmp_path / "bin"))
    assert done.returncode == ends, done.stderr
    assert events(calls).count("run") == starts
    assert events(calls).count("stop") == starts


@pytest.mark.parametrize("kind", ["tpu", "gce"])
def test_a_refused_request_is_not_repeated_for_ever(tmp_path, kind):
    words = RECIPES[f"{kind} train"]
    calls = cloud(tmp_path, ["NONE" if kind == "tpu" else ""] * 9, [])
    (tmp_path / "refused").touch()
    at = words.index("--")
    done = launch([*words[:at], "--restarts=2", *words[at:]], cwd=tmp_path, PATH=path_with(tmp_path / "bin"))
    assert done.returncode == 1
    assert "run" not in events(calls)
    assert "(failure 3; 2 are forgiven)" in done.stderr or kind == "gce"  # which is refused the policy before


def test_a_gpu_group_is_created_again_when_a_machine_has_gone(tmp_path):
    states = ["", "h0", "h0 h1", "h1", "", "h2 h3"]
    calls = cloud(tmp_path, states, [1, 1, 0, 0])
    words = ["gce.sh", "train", *GPUS, "--hosts=2", "--", *FLAGS]
    done = launch(words, cwd=tmp_path, PATH=path_with(tmp_path / "bin"))
    assert done.returncode == 0, done.stderr
    start = ["scp", "scp", "setup", "setup", "stop", "stop", "run", "run"]
    assert events(calls) == ["git archive", "templates create", "create", *start, "delete", "create", *start]
    last_arguments = sorted(tuple(f.read_text().splitlines()[-3:]) for f in tmp_path.glob("arguments.*"))
    assert last_arguments == [
        (f"--coordinator={first}:8476", "--processes=2", f"--process={i}") for first in ("h0", "h2") for i in (0, 1)
    ]
    assert all(f.read_text().splitlines()[3:-3] == FLAGS for f in tmp_path.glob("arguments.*"))


def test_a_loop_that_is_started_again_does_not_wait_for_stopped_machines(tmp_path):
    """A preempted machine is stopped and stays so: the group is made anew, though this loop never saw it whole."""
    calls = cloud(tmp_path, ["h1", "", "h2 h3"], [0, 0])
    (tmp_path / "group").touch()
    (tmp_path / "stopped").write_text("h0\n")
    done = launch(["gce.sh", "train", *GPUS, "--hosts=2", "--", *FLAGS], cwd=tmp_path, PATH=path_with(tmp_path / "bin"))
    assert done.returncode == 0, done.stderr
    assert [each for each in events(calls) if each in ("create", "delete", "run")] == ["delete", "create", "run", "run"]


def test_slice_of_several_hosts_has_a_topology():
    text = recipe("gce train")
    assert "--accelerator-topology=4x4" in text
    assert "--target-size-policy-mode=bulk --workload-policy=projects/p1/regions/us-east5/resourcePolicies/run1" in text
    assert "--provisioning-model=SPOT" in text
    assert "--coordinator" not in text  # TPU hosts find one another


# A host of many


@pytest.fixture
def host(tmp_path):
    """A copy of host.sh beside a python that prints its arguments, saves on SIGTERM, and ends as $STATUS says."""
    (tmp_path / "launch").mkdir()
    shutil.copy(LAUNCH / "host.sh", tmp_path / "launch")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    stand_in(
        tmp_path / ".venv" / "bin",
        "python",
        f"""printf '%s\\n' "$@" >{tmp_path}/arguments
echo started
trap 'echo saved; exit 143' TERM
[[ -z $HANG ]] || while true; do /bin/sleep 0.05; done
exit "$STATUS" """,
    )
    stand_in(tmp_path / "bin", "sleep", "exec /bin/sleep 0.1")
    stand_in(tmp_path / "bin", "gcloud", f'echo "$*" >>{tmp_path}/copied')
    stand_in(tmp_path / "bin", "sudo", f'echo "$*" >>{tmp_path}/sudo; exec "$@"')
    stand_in(tmp_path / "bin", "rm", '[[ $* == *libtpu_lockfile ]] || exec /bin/rm "$@"')
    stand_in(tmp_path / "bin", "fuser", "exit 1")
    stand_in(tmp_path / "bin", "systemctl", f"[[ $1 != is-active || -f {tmp_path}/active ]]")
    stand_in(
        tmp_path / "bin",
        "systemd-run",
        f"""while [[ $1 == --* ]]; do shift; done
touch {tmp_path}/active
(cd {tmp_path} && "$@"; rm {tmp_path}/active) >>{tmp_path}/vf.log 2>&1 &""",
    )
    env = clean_env(PATH=path_with(tmp_path / "bin"), HOME=str(tmp_path), STATUS="0")
    return tmp_path, ["bash", str(tmp_path / "launch" / "host.sh")], env


def test_host_runs_as_a_unit_and_reports_its_status(host):
    folder, command, env = host
    words = ["--workdir=gs://b/runs/ucf", *FLAGS]
    done = subprocess.run(
        [*command, "run", *words], env=env | {"STATUS": "3"}, capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 3, done.stderr
    assert (folder / "arguments").read_text().splitlines() == ["-m", "vf.main", *words]
    assert "started" in done.stdout
    assert "gs://b/runs/ucf/logs/" in (folder / "copied").read_text()


def test_host_passes_sigterm_on_and_waits_for_the_checkpoint(host):
    folder, command, env = host
    log = (folder / "vf.log").open("w")
    with log, subprocess.Popen([*command, "work", "--workdir=x"], env=env | {"HANG": "1"}, stdout=log) as process:
        wait_for(lambda: "started" in (folder / "vf.log").read_text())
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 143
    assert "saved" in (folder / "vf.log").read_text()
    assert (folder / "vf.status").read_text() == "143\n"


def test_host_stop_clears_the_lockfile(host):
    folder, command, env = host
    subprocess.run([*command, "stop"], env=env, check=True)
    commands = (folder / "sudo").read_text()
    assert commands.index("systemctl stop vf") < commands.index("rm -f /tmp/libtpu_lockfile")


# One machine


@pytest.fixture
def python(tmp_path):
    """A python that records its arguments and environment, and behaves as $STORY says."""
    stand_in(
        tmp_path / "bin",
        "python",
        f"""for word in "$@"; do [[ $word != --process=* ]] || process=${{word#*=}}; done
printf '%s\\n' "$@" >"{tmp_path}/got.$process.$$"
echo "process $process: $CUDA_VISIBLE_DEVICES $JAX_NUM_CPU_DEVICES"
trap 'echo saved; exit 143' TERM
hang() {{ while true; do /bin/sleep 0.05; done; }}
case $STORY in
  done) exit 0 ;;
  one-fails) ((process == 1)) && exit 7; hang ;;
  bad-input) exit 2 ;;
  second-time) mkdir "{tmp_path}/tried.$process" 2>/dev/null && exit 3; exit 0 ;;
  deaf) ((process == 1)) && exit 7; trap '' TERM; hang ;;
  busy) trap '' TERM; hang ;;
  hang) hang ;;
esac""",
    )
    stand_in(tmp_path / "bin", "nvidia-smi", "exit 9")
    return tmp_path


def local(folder: Path, events: str, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    env = {"PYTHON": str(folder / "bin" / "python"), "PATH": path_with(folder / "bin"), "STORY": events} | env
    return launch(["local.sh", *words, "--workdir=run", *FLAGS], cwd=folder, **env)


def got(folder: Path) -> list[list[str]]:
    return [f.read_text().splitlines() for f in sorted(folder.glob("got.*"))]


def test_local_processes_receive_their_process_flags(python):
    done = local(python, "done", "3", "--devices=2")
    assert done.returncode == 0, done.stderr
    everyone = got(python)
    assert [words[4] for words in everyone] == [f"--process={i}" for i in range(3)]
    for words in everyone:
        assert words[:2] == ["-m", "vf.main"]
        assert words[2].startswith("--coordinator=127.0.0.1:")
        assert words[2:4] == [everyone[0][2], "--processes=3"]
        assert words[5:] == ["--workdir=run", *FLAGS]
    for i in range(3):
        assert (python / "run" / "logs" / f"process_{i}.log").read_text() == f"process {i}:  2\n"


def test_local_divides_gpus(python):
    local(python, "done", "2", CUDA_VISIBLE_DEVICES="4,5,6,7")
    logs = [(python / "run" / "logs" / f"process_{i}.log").read_text().strip() for i in range(2)]
    assert logs == ["process 0: 4,5", "process 1: 6,7"]
    done = local(python, "done", "3", CUDA_VISIBLE_DEVICES="4,5,6,7")
    assert done.returncode == 2
    assert "cannot be divided evenly" in done.stderr


def test_local_failure_ends_the_others(python):
    done = local(python, "one-fails", "3", "--grace=1")
    assert done.returncode == 7
    assert "saved" in (python / "run" / "logs" / "process_0.log").read_text()
    assert "saved" in (python / "run" / "logs" / "process_2.log").read_text()


def test_local_failure_ends_processes_that_ignore_sigterm(python):
    assert local(python, "deaf", "2", "--grace=1").returncode == 7


def test_local_starts_again(python):
    done = local(python, "second-time", "2", "--restarts=2")
    assert done.returncode == 0, done.stderr
    assert len(got(python)) == 4
    assert len({words[2] for words in got(python)}) == 2  # another port


def test_local_bad_input_is_final(python):
    assert local(python, "bad-input", "2", "--restarts=5").returncode == 2
    assert len(got(python)) == 2


@contextlib.contextmanager
def interruptible(python: Path, events: str) -> Iterator[subprocess.Popen[bytes]]:
    """local.sh with two processes, once both have begun."""
    env = clean_env(PYTHON=str(python / "bin" / "python"), PATH=path_with(python / "bin"), STORY=events)
    command = [str(LAUNCH / "local.sh"), "2", "--restarts=5", "--workdir=run"]
    logs = [python / "run" / "logs" / f"process_{i}.log" for i in range(2)]
    # A job in a shell's background ignores Ctrl-C from its start, and so would its children.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(command, cwd=python, env=env, stdout=subprocess.DEVNULL)
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        try:
            wait_for(lambda: all(log.exists() and "process" in log.read_text() for log in logs))
            yield process
        finally:
            process.terminate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_local_passes_signals_on(python, number):
    with interruptible(python, "hang") as process:
        process.send_signal(number)
        assert process.wait(10) == 143
    assert all("saved" in (python / "run" / "logs" / f"process_{i}.log").read_text() for i in range(2))
    assert len(got(python)) == 2


def test_local_kills_at_the_second_interrupt(python):
    with interruptible(python, "busy") as process:
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 128 + signal.SIGKILL
    assert len(got(python)) == 2


# SLURM: the batch script, against stand-ins


@pytest.fixture
def slurm(tmp_path):
    """sbatch runs the script at once, srun its command; $STATUS is how that ends."""
    stand_in(tmp_path / "bin", "sbatch", 'exec bash "${@: -1}"')
    stand_in(tmp_path / "bin", "srun", 'while [[ $1 == --* ]]; do shift; done; "$@" & echo $! >step; wait $!')
    stand_in(tmp_path / "bin", "scancel", f'echo "scancel $*" >>{tmp_path}/calls; kill -TERM "$(<step)"')
    stand_in(tmp_path / "bin", "squeue", 'echo "${STATE:-RUNNING}"')
    stand_in(tmp_path / "bin", "scontrol", f'echo "scontrol $*" >>{tmp_path}/calls')
    stand_in(
        tmp_path / "bin",
        "python",
        f"""printf '%s\\n' "$@" >{tmp_path}/arguments
trap 'exit 143' TERM
[[ -z $HANG ]] || {{ touch {tmp_path}/ready; while true; do /bin/sleep 0.05; done; }}
exit "$STATUS" """,
    )
    return tmp_path


@pytest.mark.parametrize(
    ("status", "restarted", "state", "requeued"),
    [
        (0, 0, "RUNNING", False),
        (2, 0, "RUNNING", False),
        (3, 0, "RUNNING", True),
        (1, 20, "RUNNING", False),
        (143, 20, "RUNNING", True),
        (143, 0, "COMPLETING", False),
    ],
    ids=["done", "bad input", "missing host", "too many crashes", "out of time", "cancelled"],
)
def test_slurm_requeues_resumable_jobs(slurm, status, restarted, state, requeued):
    env = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restarted), "STATUS": str(status), "STATE": state}
    words = ["slurm.sh", "train", *SLURM, f"--python={slurm}/bin/python", "--", *FLAGS]
    done = launch(words, cwd=slurm, PATH=path_with(slurm / "bin"), **env)
    calls = (slurm / "calls").read_text() if (slurm / "calls").exists() else ""
    assert calls == ("scontrol requeue 7\n" if requeued else "")
    assert done.returncode == (0 if requeued else status)
    expected = ["-m", "vf.main", "--workdir=runs/ucf", "--compile_cache=runs/xla", "--mode=train", *FLAGS]
    assert (slurm / "arguments").read_text().splitlines() == expected


def test_slurm_warning_reaches_the_tasks(slurm):
    words = ["train", *SLURM, f"--python={slurm}/bin/python", "--", *FLAGS]
    env = clean_env(PATH=path_with(slurm / "bin"), SLURM_JOB_ID="7", HANG="1")
    stand_in(slurm / "bin", "sbatch", 'bash "${@: -1}" & echo $! >batch; wait $!')
    with subprocess.Popen([LAUNCH / "slurm.sh", *words], cwd=slurm, env=env, stdout=subprocess.DEVNULL) as process:
        wait_for(lambda: (slurm / "ready").exists() and (slurm / "step").exists())
        os.kill(int((slurm / "batch").read_text()), signal.SIGTERM)  # as --signal=B:TERM@300 does
        assert process.wait(10) == 0
    assert (slurm / "calls").read_text() == "scancel --signal=TERM 7\nscontrol requeue 7\n"


def test_slurm_directives():
    text = recipe("slurm train")
    for line in ("--signal=B:TERM@300", "--requeue", "--open-mode=append", "--ntasks-per-node=8", "--partition=gpu"):
        assert f"#SBATCH {line}\n" in text
    assert text.rindex("#SBATCH") < text.index("set -uo pipefail")  # SLURM reads none after the first command
    assert "JAX_LOCAL_DEVICE_IDS" not in text  # one process per GPU is jax's default under SLURM
    assert "export JAX_LOCAL_DEVICE_IDS=0,1,2,3,4,5,6,7\n" in recipe("slurm evaluate")
    assert "--dependency=after:12 " in recipe("slurm evaluate")


def test_slurm_array_draws_with_different_seeds(slurm):
    env = {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "8", "SLURM_ARRAY_TASK_ID": "3", "STATUS": "1"}
    words = [*RECIPES["slurm sample"][:-4], f"--python={slurm}/bin/python", "--", *FLAGS]
    launch(words, cwd=slurm, PATH=path_with(slurm / "bin"), **env)
    got = (slurm / "arguments").read_text().splitlines()
    assert got[2] == "--workdir=runs/ucf/more/3"
    assert got[-2:] == ["--config.init_from=runs/ucf", "--config.sample.seed=3"]
    assert (slurm / "calls").read_text() == "scontrol requeue 8_3\n"


# Kubernetes: what is applied, against schemas


def manifests(name: str) -> list[dict]:
    text = recipe(name).split("<<'YAML'\n")[1].split("\nYAML\n")[0]
    return list(yaml.safe_load_all(text))


def closed(properties: dict, required: tuple[str, ...] = ()) -> dict:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


TEXT = {"type": "string", "minLength": 1}
COUNT = {"type": "integer", "minimum": 0}
LABELS = {"type": "object", "additionalProperties": TEXT}
ACTIONS = ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts", "RestartJob"]


def resource(kind: str, version: str, spec: dict) -> dict:
    metadata = closed({"name": TEXT, "namespace": TEXT, "labels": LABELS, "annotations": LABELS}, ("name",))
    head = {"apiVersion": {"const": version}, "kind": {"const": kind}, "metadata": metadata}
    return closed(head | {"spec": spec}, ("apiVersion", "kind", "metadata", "spec"))


# By hand: the fields that are used, as JobSet v1alpha2 and Kueue v1beta2 define them. The job inside a JobSet is
# validated as a batch/v1 Job.
SCHEMAS = {
    "JobSet": resource(
        "JobSet",
        "jobset.x-k8s.io/v1alpha2",
        closed(
            {
                "failurePolicy": closed(
                    {
                        "maxRestarts": COUNT,
                        "rules": {
                            "type": "array",
                            "items": closed(
                                {
                                    "name": {"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
                                    "action": {"enum": ACTIONS},
                                    "onJobFailureReasons": {"type": "array", "items": {"enum": ["PodFailurePolicy"]}},
                                    "onJobFailureMessagePatterns": {"type": "array", "items": TEXT},
                                },
                                ("name", "action"),
                            ),
                        },
                    }
                ),
                "replicatedJobs": {
                    "type": "array",
                    "items": closed({"name": TEXT, "replicas": COUNT, "template": closed({"spec": {}})}, ("name",)),
                },
            }
        ),
    ),
    "ResourceFlavor": resource("ResourceFlavor", "kueue.x-k8s.io/v1beta2", closed({"nodeLabels": LABELS})),
    "ClusterQueue": resource(
        "ClusterQueue",
        "kueue.x-k8s.io/v1beta2",
        closed(
            {
                "namespaceSelector": closed({}),
                "queueingStrategy": {"enum": ["StrictFIFO", "BestEffortFIFO"]},
                "resourceGroups": {
                    "type": "array",
                    "items": closed(
                        {
                            "coveredResources": {"type": "array", "items": TEXT},
                            "flavors": {
                                "type": "array",
                                "items": closed(
                                    {
                                        "name": TEXT,
                                        "resources": {
                                            "type": "array",
                                            "items": closed(
                                                {"name": TEXT, "nominalQuota": COUNT}, ("name", "nominalQuota")
                                            ),
                                        },
                                    },
                                    ("name", "resources"),
                                ),
                            },
                        },
                        ("coveredResources", "flavors"),
                    ),
                },
            }
        ),
    ),
    "LocalQueue": resource("LocalQueue", "kueue.x-k8s.io/v1beta2", closed({"clusterQueue": TEXT})),
}


@pytest.mark.parametrize("name", ["gke train", "gke gpus", "gke evaluate", "gke sample", "gke queues"])
def test_kubernetes_manifests_fit_their_schemas(name):
    jsonschema = pytest.importorskip("jsonschema")
    kubernetes = pytest.importorskip("kubernetes_validate")
    jobs = []
    for manifest in manifests(name):
        if manifest["kind"] in SCHEMAS:
            jsonschema.validate(manifest, SCHEMAS[manifest["kind"]])
            inside = manifest["spec"].get("replicatedJobs", [])
            jobs += [
                {
                    "apiVersion": "batch/v1",
                    "kind": "Job",
                    "metadata": {"name": j["name"]},
                    "spec": j["template"]["spec"],
                }
                for j in inside
            ]
        else:
            jobs.append(manifest)
    for job in jobs:
        kubernetes.validate(job, "1.34", strict=True)
    assert jobs or name == "gke queues"


def container(job: dict) -> dict:
    return job["spec"]["template"]["spec"]["containers"][0]


def test_jobset_of_a_slice():
    (jobset,) = manifests("gke train")
    assert jobset["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "vf"}
    assert list(jobset["metadata"]["annotations"].values()) == ["cloud.google.com/gke-nodepool"]
    (train,) = jobset["spec"]["replicatedJobs"]
    job = train["template"]
    assert job["spec"]["parallelism"] == job["spec"]["completions"] == 4
    assert job["spec"]["backoffLimit"] == 0
    # Kubernetes would expand $(y): it is written $$(y).
    escaped = [word.replace("$(", "$$(") for word in FLAGS]
    assert container(job)["args"] == [
        "--workdir=gs://b/runs/ucf",
        "--compile_cache=gs://b/runs/xla",
        "--mode=train",
        *escaped,
    ]
    assert container(job)["resources"]["limits"] == {"google.com/tpu": 4}


def test_jobset_restarts_after_preemptions_but_not_after_bad_input():
    (jobset,) = manifests("gke train")
    bad_input, preempted = jobset["spec"]["failurePolicy"]["rules"]
    assert bad_input["action"] == "FailJobSet"
    assert preempted["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    # Kubernetes's words for a job that failed by the first rule; 143 and preemptions must not match.
    (pattern,) = bad_input["onJobFailureMessagePatterns"]
    assert pattern in "Container vf for pod default/x failed with exit code 2 matching FailJob rule at index 0"
    assert pattern not in "Container vf for pod default/x failed with exit code 143 matching FailJob rule at index 0"
    assert pattern not in "Pod default/x has condition DisruptionTarget matching FailJob rule at index 1"
    rules = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"]
    assert rules[0]["onExitCodes"]["values"] == [2, 143]
    assert rules[1]["onPodConditions"][0]["type"] == "DisruptionTarget"


def test_gpu_pods_receive_their_process_flags():
    (jobset,) = manifests("gke gpus")
    pod = jobset["spec"]["replicatedJobs"][0]["template"]
    last_arguments = container(pod)["args"][-3:]
    assert last_arguments == ["--coordinator=run1-train-0-0.run1:8476", "--processes=4", "--process=$(PROCESS)"]
    assert container(pod)["env"][0]["name"] == "PROCESS"
    assert pod["spec"]["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-spot"] == "true"


def test_jobs_beside_training():
    (evaluate,), (sample,) = manifests("gke evaluate"), manifests("gke sample")
    assert "--mode=evaluate" in container(evaluate)["args"]
    assert container(sample)["args"][0] == "--workdir=gs://b/runs/ucf/more/$(PROCESS)"
    assert container(sample)["args"][-2:] == ["--config.sample.seed=$(PROCESS)", "--processes=1"]
    assert sample["spec"]["completionMode"] == "Indexed"
    for job in (evaluate, sample):
        assert job["spec"]["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [2]


def test_image_has_the_accelerator_and_the_requirements():
    text = (LAUNCH / "Dockerfile").read_text()
    assert "ARG ACCELERATOR=cpu" in text
    assert "make install ACCELERATOR=${ACCELERATOR}" in text
    assert "-r requirements-cloud.txt" in text
    assert "-r requirements-cloud.txt" in (LAUNCH / "host.sh").read_text()
    assert "--build-arg=ACCELERATOR=tpu" in recipe("gke image")
    assert json.loads(text.split("ENTRYPOINT ")[1]) == ["/vf/.venv/bin/python", "-m", "vf.main"]
