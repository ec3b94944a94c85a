"""How a process of a run ends: errors, exit statuses, and what the others are told of it."""

import signal
import traceback

from vf.types import UserError

GRACE = 5.0  # seconds that a process is given to end by itself


class HostsError(Exception):
    """Hosts are missing or do not fit together, in one sentence. `vf.main` prints it and exits with 3."""


class Stopped(Exception):
    """Told to stop by SIGTERM, and a checkpoint is saved. `vf.main` says so and exits with 143."""


def outcome(error: BaseException) -> tuple[int, str]:
    """Exit status, and what to say: nothing where a signal's status says it, the traceback of what is unforeseen."""
    statuses: dict[type, int] = {UserError: 2, HostsError: 3, Stopped: 128 + signal.SIGTERM}
    for kind, status in statuses.items():
        if isinstance(error, kind):
            return status, f"vf: {error}"
    if isinstance(error, SystemExit):
        if error.code is None or isinstance(error.code, int):
            return int(error.code or 0), ""
        return 1, str(error.code)
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT, ""
    return 1, "".join(traceback.format_exception(error)).rstrip()


def grace(status: int) -> float:
    """Seconds in which a process may end by itself after another one has, with that status."""
    return GRACE if status == 1 else 6 * GRACE  # what all come to, by and by, or a host that is lost


def gone(process: int, host: str, status: int, why: str) -> tuple[int, str]:
    """Status and sentence for those who are left behind."""
    who = f"vf: host {host} (process {process})"
    if status == 2:
        return 2, f"{who} has ended: {why}"
    if status == 128 + signal.SIGTERM:
        return status, f"{who} was told to stop, and all processes end"
    reason = f" ({why})" if why else ""
    told = f"{who} has gone{reason}; the same command on all hosts goes on from the last checkpoint"
    return (status if status == 3 else 1), told
