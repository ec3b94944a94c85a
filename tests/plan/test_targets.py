"""Machines from text, with the nearest that exists for one that does not; their rings."""

import pytest

from vf.plan.chips import CHIPS
from vf.plan.targets import SHAPES, parse_target
from vf.types import UserError


@pytest.mark.parametrize(
    ("text", "kind", "chip", "shape", "slices", "devices", "name", "options"),
    [
        ("v5e:16x16", "tpu", "v5e", (16, 16), 1, 256, "v5e:16x16", {}),
        ("v5e:1x1", "tpu", "v5e", (1, 1), 1, 1, "v5e:1x1", {"chips_per_host_bounds": [1, 1, 1]}),
        ("v4:4x4x8", "tpu", "v4", (4, 4, 8), 1, 128, "v4:4x4x8", {"chip_config_name": "megacore"}),
        ("v5p:2x4x4", "tpu", "v5p", (2, 4, 4), 1, 32, "v5p:2x4x4", {}),
        ("v5p:16x16x24", "tpu", "v5p", (16, 16, 24), 1, 6144, "v5p:16x16x24", {}),
        ("v5p:4x4x4*2", "tpu", "v5p", (4, 4, 4), 2, 128, "v5p:4x4x4", {"num_slices": 2}),
        ("v6e:8x8", "tpu", "v6e", (8, 8), 1, 64, "v6e:8x8", {}),
        ("gpu:8xH200", "gpu", "H200", (1, 8), 1, 8, None, {}),
        ("gpu:2xA100-80", "gpu", "A100-80", (1, 2), 1, 2, None, {}),
        ("gpu:64xH100", "gpu", "H100", (8, 8), 1, 64, None, {}),
        ("cpu:8", "cpu", None, (8,), 1, 8, None, {}),
    ],
)
def test_target(text, kind, chip, shape, slices, devices, name, options):
    target = parse_target(text)
    assert (target.kind, target.shape, target.slices, target.devices) == (kind, shape, slices, devices)
    assert target.chip is (CHIPS[chip] if chip else None)
    assert target.topology_name == name
    assert target.topology_options == options
    assert target.text == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v5e:5x7", r"v5e:5x7 is no slice: v5e has 1x1, 2x2, .*16x16; the nearest is v5e:4x8$"),
        ("v5e:4x2", r"the nearest is v5e:2x4$"),
        ("v5e:32x16*2", r"the nearest is v5e:16x16\*2$"),
        ("v5e:0x0", r"the nearest is v5e:1x1$"),
        ("v4:16x16", r"is no slice: v4 has 2x2x1, .* ascending multiples of 4 up to 16x16x16; .* v4:4x8x8$"),
        ("v5p:8x4x4", r"the nearest is v5p:4x4x8$"),
        ("v5p:128", r"the nearest is v5p:4x4x8$"),
        ("v5p:4x4x4*0", r"has no slices: change \*0"),
        ("v5e:", r"needs the extents of a slice: write one like v5e:16x16"),
        ("v5:4x4", r"names no machine.*did you mean one like v5[ep]:.*\?$"),
        ("V6E:4x4", r"did you mean one like v6e:"),
        ("v5e", r"did you mean one like v5e:"),
        ("H100", r"did you mean one like gpu:8xH100"),
        ("v5litepod-16", r"did you mean one like v5e:16x16"),
        ("", r"names no machine that is known, of v4, v5e, .*: write one like .*v5e:16x16"),
        ("gpu:8", r"needs a number of GPUs and their kind"),
        ("gpu:8xH20", r"not known, of A100-40, .*: the nearest is gpu:8xH200"),
        ("gpu:8xA100", r"the nearest is gpu:8xA100-40"),
        ("gpu:12xH100", r"change 12 to (8|16) or to another multiple of 8"),
        ("gpu:0xH100", r"needs a number of GPUs"),
        ("cpu:0", r"needs the number of CPU devices"),
        ("cpu:many", r"needs the number of CPU devices"),
    ],
)
def test_refused(text, message):
    with pytest.raises(UserError, match=message):
        parse_target(text)


def test_shapes():
    for name, shapes in SHAPES.items():
        assert len(set(shapes)) == len(shapes)
        for shape in shapes:
            assert len(shape) == CHIPS[name].dims
            assert parse_target(f"{name}:{'x'.join(map(str, shape))}").shape == shape


@pytest.mark.parametrize(
    ("text", "rings"),
    [
        ("v5e:16x16", (True, True)),
        ("v5e:8x16", (False, True)),  # the long axis of half a pod is a ring
        ("v6e:8x8", (False, False)),
        ("v4:4x4x8", (True, True, True)),
        ("v5p:2x4x4", (False, False, False)),  # less than a cube has no optical switches
        ("gpu:8xH100", ()),
        ("cpu:8", ()),
    ],
)
def test_wraps(text, rings):
    assert parse_target(text).wraps == rings
