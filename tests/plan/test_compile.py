"""Descriptions of devices that this machine does not have."""

import numpy as np

from vf.plan import compile as compiling
from vf.plan.targets import parse_target
from vf.training import sharding


def test_stand_ins_lie_as_the_slice(tmp_path):
    devices = compiling.fake_devices(parse_target("v4:2x2x4"))
    assert len(devices) == 16
    assert {device.coords for device in devices} == set(np.ndindex(2, 2, 4))
    two = sharding.make_mesh(2, 16, devices=compiling.fake_devices(parse_target("v5p:2x2x4*2")))
    assert [{device.slice_index for device in row.flat} for row in two.devices] == [{0}, {1}]
