"""Says in one sentence what to change where a device, or the machine, has too little memory for a job."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import jax

from vf.types import UserError

ADVICE = {
    "training": (
        "lower train.batch_size, raise train.accumulate, set model.remat=blocks or model.dtype=bfloat16, or split "
        "parameters over devices by mesh.fsdp"
    ),
    "sampling": "lower sample.batch_size, or set model.dtype=bfloat16",
    "super-resolution": (
        "lower sample.superres_batch_size, set sample.superres_tile and sample.superres_frames for tiles, or "
        "model.dtype=bfloat16"
    ),
    "evaluation": "lower eval.batch_size or sample.batch_size, or set model.dtype=bfloat16",
}
"""What to change, for each phase of a job."""

# XLA words its errors differently on each platform, and numpy words its own:
#     Out of memory allocating 1024 bytes.    Out of memory while trying to allocate 17.05GiB.
#     Failed to allocate request for 2.99GiB (3206250496B) on device ordinal 0
#     Attempting to allocate 4.00G. That was not possible. There are 2.30G free.
#     Ran out of memory in memory space hbm. Used 23.61G of 15.48G hbm.    Unable to allocate 256. TiB for an array
ASKED = re.compile(r"(?:allocate|allocating|request for|Used) ([\d.]+) ?([KMGT]?)")
FREE = re.compile(r"There are ([\d.]+) ?([KMGT]?)")
ALL = re.compile(r"Used \S+ of ([\d.]+) ?([KMGT]?)")


@contextmanager
def explained(phase: str) -> Iterator[None]:
    """Turns a lack of memory from within into a UserError, with the bytes asked for and had, and what to change.

    phase: a key of `ADVICE`. Also a decorator. Phases may be nested, and the inner one explains.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        text = str(error)
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in text:
            raise
        asked = _size(ASKED, text)
        wanted = f"{asked} were asked for" if asked else "more was asked for than there is"
        raise UserError(
            f"out of memory in {phase}: {wanted}, and {_had(error)}; {ADVICE[phase]}; --mode=plan computes what fits"
        ) from error


def _had(error: BaseException) -> str:
    """The memory that there is: as the error says, else as the devices report it, else that of the machine."""
    text = str(error)
    if free := _size(FREE, text):
        return f"{free} are free"
    if whole := _size(ALL, text):
        return f"the device has {whole}"
    stats = {} if isinstance(error, MemoryError) else _fullest()
    if "bytes_limit" in stats:
        return f"the device has {_gib(stats['bytes_limit'])}, {_gib(stats.get('bytes_in_use', 0))} of it in use"
    return f"this machine has {_gib(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES'))}"


def _fullest() -> dict[str, int]:
    """Memory of the local device of which most is in use, as jax reports it; {} where the platform reports none."""
    stats = [found for device in jax.local_devices() if (found := device.memory_stats())]
    return max(stats, key=lambda found: found.get("bytes_in_use", 0), default={})


def _size(pattern: re.Pattern[str], text: str) -> str:
    """The size that `pattern` finds in `text`, in GiB; "" where it finds none."""
    match = pattern.search(text)
    return _gib(float(match[1].rstrip(".")) * 1024.0 ** " KMGT".index(match[2] or " ")) if match else ""


def _gib(count: float) -> str:
    return f"{count / 2**30:,.2f} GiB"
