"""A source for every figure, and rings of tori."""

import dataclasses

import pytest

from vf.plan.chips import CHIPS, wraps

FIGURES = ("flops_bf16", "flops_f32", "hbm_bytes", "hbm_bandwidth", "lanes", "ici_bandwidth", "dcn_bandwidth", "host")


@pytest.mark.parametrize("chip", CHIPS.values(), ids=lambda chip: chip.name)
def test_figures(chip):
    for figure in FIGURES + (("cores", "dims", "wrap") if chip.kind == "tpu" else ()):
        assert getattr(chip, figure) > 0
        assert chip.sources[figure]
    assert set(chip.sources) <= {field.name for field in dataclasses.fields(chip)}
    # Each store is slower than the one before it.
    assert chip.flops_bf16 >= chip.flops_f32 > chip.hbm_bandwidth > chip.ici_bandwidth > chip.dcn_bandwidth
    assert hash(chip)


def test_wraps_of_a_chip():
    assert wraps(CHIPS["v4"], (4, 4, 6)) == (False, False, False)
