"""What the commands of this package have in common: which messages they show, and how they end."""

import argparse
import errno
import importlib.metadata
import importlib.util
import logging
import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

HERE = Path(__file__).parent
_FULL = (errno.ENOSPC, errno.EDQUOT)


def hide_messages_of_libraries() -> None:
    """Hides the libraries' messages below the level of warnings, which say how they work, not what they do for us.

    So it does those on a checkpoint that could not be written, whose error is raised too: Orbax's, and those of the
    threads that still wrote, a traceback each.
    """
    from absl import logging as absl_logging

    absl_logging.get_absl_handler().addFilter(is_shown)
    shown = sys.unraisablehook

    def show(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            shown(unraisable)

    sys.unraisablehook = show


def is_shown(record: logging.LogRecord) -> bool:
    """Whether a message comes from this package, or is a warning or worse that is not of a full disk."""
    if Path(record.pathname).is_relative_to(HERE):
        return True
    said = Exception(record.getMessage())
    said.__cause__ = record.exc_info[1] if record.exc_info else None
    return record.levelno >= logging.WARNING and not is_full(said)


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, says that a disk is full; libraries say so in words alone."""
    while error is not None:
        if getattr(error, "errno", None) in _FULL or any(os.strerror(number) in str(error) for number in _FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


def leave_out_absent_tpu() -> None:
    """Keeps jax from starting libtpu where there is no TPU, which takes seconds and prints five lines about it.

    jax looks for the chips when it is imported, and names the platform `tpu` where it finds some. Elsewhere libtpu
    serves plans alone. `JAX_PLATFORMS=tpu` insists. Must be called before jax starts its backends.
    """
    import jax

    if getattr(jax.config, "jax_platforms", None) is None and importlib.util.find_spec("libtpu"):
        if importlib.util.find_spec("jax_plugins") or importlib.metadata.entry_points(group="jax_plugins"):
            return  # of accelerators that jax is to try
        jax.config.update("jax_platforms", "cpu")


@contextmanager
def until_ended() -> Iterator[None]:
    """Ends the program without a traceback where its user does: by Ctrl-C, with a sentence and status 130, or by
    reading no more of what it prints (`... | head`), with status 141 as SIGPIPE has it.

    Also a decorator. SIGPIPE itself would end the program at any connection that somebody else closes.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not nobody_reads():
            raise
        # What is still buffered would be written, and fail again, when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except KeyboardInterrupt:
        print("vf: interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


class Parser(argparse.ArgumentParser):
    """A parser that answers a slip as all that is foreseen: by one sentence and status 2, without the usage. A flag has
    one name: the beginning of it is none, which would be another flag's as soon as there is one."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Ends the program with `message` on stderr, and the command that lists the flags."""
        self.exit(2, f"vf: {' '.join(message.split())} (see {self.prog} --help)\n")


def nobody_reads() -> bool:
    """Whether standard output or error is a pipe whose reader has gone."""
    poll = select.poll()
    for number in (1, 2):
        poll.register(number, 0)  # which reports errors alone
    return any(event & select.POLLERR for _, event in poll.poll(0))
