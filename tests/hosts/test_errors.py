"""Every way to end has an exit status, and prints no more than it must."""

import signal

import pytest

from vf.hosts.errors import DiskFull, HostsError, Stopped, exit_status
from vf.types import UserError


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (UserError("no such file"), (2, "vf: no such file")),
        (DiskFull("the disk is full"), (1, "vf: the disk is full")),
        (HostsError("process 1 is missing"), (3, "vf: process 1 is missing")),
        (Stopped("step 3 is saved"), (143, "vf: step 3 is saved")),
        (Stopped("step 3 is saved", signal.SIGINT), (130, "vf: step 3 is saved")),
        (KeyboardInterrupt(), (130, "vf: interrupted")),
        (SystemExit(143), (143, "")),
    ],
)
def test_expected_errors_are_one_line(error, expected):
    assert exit_status(error) == expected


def test_a_defect_is_a_traceback():
    status, text = exit_status(ZeroDivisionError("by three"))
    assert status == 1
    assert text.endswith("ZeroDivisionError: by three")
