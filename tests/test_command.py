"""Commands show their own messages, start no TPU where there is none, and end quietly when nobody reads them."""

import argparse
import errno
import importlib
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from vf import command

ROOT = Path(__file__).parents[1]
COMMANDS = ["vf.main", "vf.evaluate", "vf.data.prepare", "vf.data.inspect", "vf.pretrained.convert"]


@pytest.mark.parametrize(
    ("path", "level", "shown"),
    [
        (ROOT / "vf" / "jobs" / "train.py", logging.INFO, True),
        ("site-packages/jax/_src/xla_bridge.py", logging.INFO, False),
        ("site-packages/tensorflow_datasets/core/dataset_info.py", logging.INFO, False),
        ("site-packages/orbax/checkpoint/checkpoint_manager.py", logging.WARNING, True),
    ],
)
def test_messages_of_libraries_are_hidden_up_to_warnings(path, level, shown):
    assert command.is_shown(logging.LogRecord("any", level, str(path), 1, "text", (), None)) is shown


def test_what_libraries_log_of_a_full_disk_is_hidden_as_the_error_is_raised_too():
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for path, shown in (("site-packages/orbax/future.py", False), (str(ROOT / "vf" / "files.py"), True)):
        for text, error in ((f"raised an exception: {full}", None), ("the save failed", full)):
            record = logging.LogRecord("any", logging.ERROR, path, 1, text, (), error and (type(error), error, None))
            assert command.is_shown(record) is shown
    assert command.is_shown(logging.LogRecord("any", logging.ERROR, "site-packages/orbax/a.py", 1, "text", (), None))


def test_the_filter_is_where_all_messages_pass():
    """Those of jax's loggers, which are Python's, and of libraries that use absl's, as vf.main does."""
    code = (
        "from absl import app, logging\nimport logging as std\nfrom vf import command\n"
        "def main(_):\n"
        "    logging.set_verbosity(logging.INFO); command.hide_messages_of_libraries()\n"
        "    std.getLogger('jax._src.xla_bridge').info('theirs'); logging.info('theirs')\n"
        "    class Late:\n"
        "        def __init__(self, error): self.error = error\n"
        "        def __del__(self): raise self.error\n"
        "    Late(RuntimeError('Event loop is closed')); Late(RuntimeError('of another kind'))\n"
        "    logging.warning('serious'); exec(compile('logging.info(\"ours\")', command.__file__, 'exec'))\n"
        "app.run(main)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "theirs" not in done.stderr
    assert "Event loop" not in done.stderr
    assert "of another kind" in done.stderr
    assert "serious" in done.stderr
    assert "ours" in done.stderr


def test_an_absent_tpu_is_left_out(monkeypatch):
    """Where libtpu is installed, jax has found no chip, and there is no other accelerator's plugin."""
    set_to = []
    for installed, platforms, expected in (
        ({"libtpu"}, None, [("jax_platforms", "cpu")]),
        ({"libtpu"}, "tpu,cpu", []),
        ({"libtpu", "jax_plugins"}, None, []),
        (set(), None, []),
    ):
        set_to.clear()
        config = SimpleNamespace(jax_platforms=platforms, update=lambda *both: set_to.append(both))
        monkeypatch.setattr(jax, "config", config)
        monkeypatch.setattr("importlib.util.find_spec", lambda name, there=installed: name in there)
        command.leave_out_absent_tpu()
        assert set_to == expected


@pytest.mark.parametrize(
    "code",
    [
        "[print('x' * 100) for _ in range(100_000)]",  # more than any buffer holds: the write fails
        "print('a few words')",  # which only the end writes
        "raise SystemExit(0)",
    ],
)
def test_a_command_ends_quietly_when_nobody_reads(code):
    """As with `| head`: status 141, and not a word on stderr; a command that prints nothing ends as it would."""
    program = f"from vf import command\nwith command.until_ended():\n    {code}\n"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True,
                          env={**os.environ, "PYTHONUNBUFFERED": ""})  # fmt: skip
    os.close(writer)
    assert done.returncode == (0 if "Exit" in code else 128 + signal.SIGPIPE)
    assert not done.stderr


def test_ctrl_c_ends_a_command_with_a_sentence(capsys):
    with pytest.raises(SystemExit) as ended, command.until_ended():
        raise KeyboardInterrupt
    assert (ended.value.code, capsys.readouterr().err) == (130, "vf: interrupted\n")


def test_another_broken_pipe_is_an_error():
    with pytest.raises(BrokenPipeError), command.until_ended():
        raise BrokenPipeError("a connection that the other side has closed")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_every_command_may_be_cut(name):
    reader, writer = os.pipe()
    os.close(reader)
    line = [sys.executable, "-m", name, "--help"]
    done = subprocess.run(line, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True,
                          env={**os.environ, "PYTHONUNBUFFERED": ""})  # fmt: skip
    os.close(writer)
    assert done.returncode in (0, 128 + signal.SIGPIPE)  # argparse itself ignores the first failure
    assert not done.stderr


def test_the_help_of_the_entry_leads_to_fields_and_modes():
    done = subprocess.run([sys.executable, "-m", "vf.main", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "configs/base.py" in done.stdout
    assert all(re.search(rf"--mode={mode} +\w", done.stdout) for mode in ("train", "sample", "evaluate", "plan"))


@pytest.mark.parametrize("name", COMMANDS[1:])
def test_help_tells_every_default(name, monkeypatch):
    """Of all flags that have another one than none, empty or off."""
    parsers = []

    def capture(parser, argv=None):
        parsers.append(parser)
        raise SystemExit

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", capture)
    module = importlib.import_module(name)
    with pytest.raises(SystemExit):
        (module.arguments if hasattr(module, "arguments") else module.main)([])
    flags = [action for action in parsers[0]._actions if action.default not in (None, "", False, argparse.SUPPRESS, [])]
    assert [flag.dest for flag in flags if "default" not in (flag.help or "")] == []


@pytest.mark.parametrize("name", COMMANDS[1:])
@pytest.mark.parametrize("words", [["--nonsense"], ["one", "two\nthree", "--source"], ["--hel"]])
def test_a_slip_is_answered_in_one_sentence(name, words, monkeypatch, capsys):
    """A flag that no command has, words too many, a flag without its value, the beginning of one: no usage of forty
    lines, status 2."""
    monkeypatch.setattr(sys, "argv", [name, *words])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(name).main()
    output = capsys.readouterr()
    assert (ended.value.code, output.out, output.err.count("\n")) == (2, "", 1)
    assert re.fullmatch(rf"vf: \w.* \(see python -m {name} --help\)\n", output.err)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_that_is_started_instead_of_its_module_names_the_command(name):
    file = f"{name.replace('.', '/')}.py"
    done = subprocess.run([sys.executable, file, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"vf: start this as `python -m {name}`, in the folder of the code\n"
