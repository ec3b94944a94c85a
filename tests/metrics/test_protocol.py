"""A score always carries its protocol; protocols are complete, and record the published ones."""

import dataclasses
import json
import typing

import jax.numpy as jnp
import numpy as np
import pytest

from vf.data.clips import Windows
from vf.metrics.fvd import LINEAGES
from vf.metrics.protocol import PROTOCOLS, ClipProtocol, Score, protocol_hash, to_json


def test_a_score_needs_its_protocol():
    with pytest.raises(ValueError, match="the score fvd needs its protocol"):
        Score("fvd", 1.0, None, {})


def test_a_hash_is_of_content_and_stays():
    """Published scores are compared by it: it may not change with Python, NumPy or the order of keys."""
    protocol = {"b": [1, 2.5], "a": {"x": None, "é": True}}
    assert protocol_hash(protocol) == protocol_hash({"a": {"é": True, "x": None}, "b": (1, 2.5)}) == "07f6d761"
    assert protocol_hash({"n": np.int64(3)}) == protocol_hash({"n": 3}) == protocol_hash({"n": jnp.array(3)})
    assert protocol_hash({"n": 3}) != protocol_hash({"n": 4}) != protocol_hash({"m": 4})


def test_a_hash_of_a_function_is_of_its_name():
    assert protocol_hash({"f": np.mean}) == protocol_hash({"f": "mean"})


def test_any_value_is_converted_to_json():
    given = {
        1: np.float32(0.5), "nan": float("nan"), "inf": -np.inf, "array": np.arange(3),
        "half": jnp.ones(2, jnp.bfloat16), "nested": ({"deep": np.bool_(True)}, None),
    }  # fmt: skip
    assert json.loads(json.dumps(to_json(given), allow_nan=False)) == {
        "1": 0.5, "nan": "nan", "inf": "-inf", "array": [0, 1, 2], "half": [1.0, 1.0], "nested": [{"deep": True}, None],
    }  # fmt: skip


def other(field: dataclasses.Field):
    """Another value of a field than its default."""
    kinds = typing.get_type_hints(ClipProtocol)
    if choices := typing.get_args(kinds[field.name]):
        return next(choice for choice in choices if choice != field.default)
    return {bool: True, int: 7, float: 2.5, str: "else"}[kinds[field.name]]


@pytest.mark.parametrize("field", dataclasses.fields(ClipProtocol), ids=lambda field: field.name)
def test_every_field_but_unknown_is_in_the_hash(field):
    """`unknown` is a remark on the source, and is corrected without making another protocol of it."""
    changed = dataclasses.replace(ClipProtocol(), **{field.name: other(field)})
    same = protocol_hash(changed.facts()) == protocol_hash(ClipProtocol().facts())
    assert same == (field.name == "unknown")


@pytest.mark.parametrize("name", PROTOCOLS)
def test_presets_are_whole(name):
    protocol = PROTOCOLS[name]
    assert protocol.lineage in LINEAGES
    for start in (protocol.windows, protocol.generated_windows):
        Windows(protocol.frames, protocol.stride, protocol.fps, start, protocol.hop)
    kinds = typing.get_type_hints(ClipProtocol)
    for field in dataclasses.fields(protocol):
        value = getattr(protocol, field.name)
        if choices := typing.get_args(kinds[field.name]):
            assert value in choices
        else:
            assert type(value) is kinds[field.name]
    assert protocol.frames >= 9  # what I3D needs
    assert json.loads(json.dumps(protocol.facts())) == protocol.facts()
    assert protocol.trials >= 1


@pytest.mark.parametrize("data", ["ucf101", "sky", "taichi", "ffs"])
def test_presets_of_one_data_set_differ(data):
    found = [protocol_hash(protocol.facts()) for name, protocol in PROTOCOLS.items() if data in name.split("_")]
    assert len(found) == len(set(found)) >= 4


def test_every_lineage_is_a_protocol():
    assert set(LINEAGES) <= set(PROTOCOLS)
    assert all(PROTOCOLS[name].lineage == name for name in LINEAGES)


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("styleganv_ucf101_16f", {"split": "train+test", "n_real": 2048, "n_generated": 2048, "size": 256, "frames": 16,
                                  "windows": "random", "subset": "first", "fewer_real": True, "encoding": "jpeg"}),
        ("styleganv_sky_128f", {"split": "train", "frames": 128, "stride": 1}),
        ("styleganv_ffs_128f_subsample8f", {"frames": 16, "stride": 8}),
        ("digan_ucf101", {"split": "train+test", "windows": "all", "trials": 10, "size": 128, "seed": 42}),
        ("digan_sky", {"split": "test", "windows": "blocks", "trials": 10, "stride": 1}),
        ("digan_taichi", {"stride": 4, "windows": "blocks", "frames": 16}),
        ("tats_ucf101", {"split": "train", "windows": "all", "n_real": 2048, "size": 128, "lineage": "tats"}),
        ("mocogan_hd_ucf101", {"split": "train", "lineage": "google", "trials": 10, "size": 128}),
        ("videogpt_bair", {"split": "test", "n_real": 256, "n_generated": 256, "trials": 4, "size": 64}),
        ("latte_sky", {"stride": 3, "size": 256, "split": "train", "n_real": 2048}),
    ],
)  # fmt: skip
def test_published_protocols(name, facts):
    protocol = dataclasses.asdict(PROTOCOLS[name])
    assert {key: protocol[key] for key in facts} == facts


def test_unknown_facts_are_recorded_as_unknown():
    """In particular in the protocol of the VideoFusion paper."""
    assert "the paper gives none" in PROTOCOLS["videofusion_ucf101"].unknown
    assert "unseeded" in PROTOCOLS["styleganv_ucf101_16f"].unknown
