"""The errors that end a process of a run, and their exit statuses."""

import signal
import traceback

from vf.command import nobody_reads
from vf.types import UserError


class HostsError(Exception):
    """Hosts are missing or differ from each other, in one sentence. `vf.main` prints it and exits with 3."""


class Stopped(Exception):
    """SIGTERM has ended the training, and a checkpoint is saved. `vf.main` prints the message and exits with 143."""


def exit_status(error: BaseException) -> tuple[int, str]:
    """(exit status, text to print): a sentence for expected errors, a traceback for others, "" for SystemExit."""
    statuses = {UserError: 2, HostsError: 3, Stopped: 128 + signal.SIGTERM, KeyboardInterrupt: 128 + signal.SIGINT}
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code, ""
    if isinstance(error, BrokenPipeError) and nobody_reads():
        return 128 + signal.SIGPIPE, ""
    if status := statuses.get(type(error)):
        return status, f"vf: {str(error) or 'interrupted'}"
    return 1, "".join(traceback.format_exception(error)).rstrip()
