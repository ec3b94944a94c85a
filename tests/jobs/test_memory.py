"""Too little memory is explained in one sentence, whatever the platform's error looks like."""

import jax
import jax.numpy as jnp
import pytest

from vf.jobs.memory import ADVICE, explained
from vf.types import UserError


def sentence(phase, error) -> str:
    with pytest.raises(UserError) as raised, explained(phase):
        raise error
    return str(raised.value)


@pytest.mark.parametrize(
    ("text", "asked", "had"),
    [
        ("Out of memory while trying to allocate 4294967296 bytes.\nBufferAssignment ...", "4.00 GiB", "this machine"),
        ("Out of memory while trying to allocate 17.05GiB.", "17.05 GiB", "this machine has"),
        ("Failed to allocate request for 512.00MiB (536870912B) on device ordinal 0", "0.50 GiB", "this machine has"),
        (
            "Attempting to allocate 4.00G. That was not possible. There are 2.30G free.",
            "4.00 GiB",
            "2.30 GiB are free",
        ),
        (
            "XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 23.61G of 15.48G hbm.\n More",
            "23.61 GiB",
            "the device has 15.48 GiB",
        ),
    ],
)
def test_the_bytes_asked_for_and_had(text, asked, had):
    found = sentence("training", jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {text}"))
    assert f"out of memory in training: {asked} were asked for, and {had}" in found
    assert "\n" not in found


def test_the_devices_are_asked_where_the_error_does_not_say(monkeypatch):
    class Device:
        def memory_stats(self):
            return {"bytes_limit": 16 * 2**30, "bytes_in_use": 12 * 2**30}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    found = sentence("sampling", jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no more"))
    assert "more was asked for than there is, and the device has 16.00 GiB, 12.00 GiB of it in use" in found
    assert "this machine has" in sentence("sampling", MemoryError("Unable to allocate 256. TiB for an array"))


def test_what_to_change_is_named_for_the_innermost_phase():
    names = {
        "training": ("train.batch_size", "train.accumulate", "model.remat", "model.dtype", "--mode=plan"),
        "sampling": ("sample.batch_size", "model.dtype", "--mode=plan"),
        "super-resolution": ("sample.superres_batch_size", "sample.superres_tile", "model.dtype", "--mode=plan"),
        "evaluation": ("eval.batch_size", "model.dtype", "--mode=plan"),
    }
    assert names.keys() == ADVICE.keys()
    for phase, fields in names.items():
        with pytest.raises(UserError) as raised, explained("training"), explained(phase):
            jax.block_until_ready(jnp.zeros((2**45,)))  # this platform's own error
        assert f"out of memory in {phase}: 131,072.00 GiB were asked for" in str(raised.value)
        assert all(name in str(raised.value) for name in fields)


def test_other_errors_pass():
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), explained("training"):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")
