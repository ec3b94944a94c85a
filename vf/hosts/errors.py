"""The errors that end a process of a run, and their exit statuses."""

import signal
import traceback

from vf.command import nobody_reads
from vf.types import UserError


class HostsError(Exception):
    """Hosts are missing or differ from each other, in one sentence. `vf.main` prints it and exits with 3."""


class Stopped(Exception):
    """Signal `number` has ended the training, and a checkpoint is saved. `vf.main` prints the message and exits with
    128 + `number`: 143 for SIGTERM, 130 for Ctrl-C."""

    def __init__(self, message: str, number: int = signal.SIGTERM) -> None:
        super().__init__(message)
        self.number = number


class DiskFull(Exception):
    """There is no room for what a job writes, in one sentence. `vf.main` prints it and exits with 1."""


def exit_status(error: BaseException) -> tuple[int, str]:
    """(exit status, text to print): a sentence for expected errors, a traceback for others, "" for SystemExit."""
    statuses = {DiskFull: 1, UserError: 2, HostsError: 3, KeyboardInterrupt: 128 + signal.SIGINT}
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code, ""
    if isinstance(error, Stopped):
        return 128 + error.number, f"vf: {error}"
    if isinstance(error, BrokenPipeError) and nobody_reads():
        return 128 + signal.SIGPIPE, ""
    if status := statuses.get(type(error)):
        return status, f"vf: {str(error) or 'interrupted'}"
    return 1, "".join(traceback.format_exception(error)).rstrip()
