"""The canonical file: its contents are read back, and a file that does not match its header is refused."""

import re
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from vf.pretrained import convert, names, weights
from vf.pretrained.names import Origin
from vf.types import UserError

ARRAYS = {"a/kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, np.float32)}


def test_round_trip(tmp_path):
    fingerprint = weights.save(tmp_path / "w.safetensors", "i3d", ARRAYS, {"source": "x.pt"})
    found = weights.load(tmp_path / "w.safetensors", "i3d")
    assert found.fingerprint == fingerprint == weights.fingerprint(ARRAYS)
    assert found.about == {"source": "x.pt"}
    np.testing.assert_array_equal(found.tree()["a"]["kernel"], ARRAYS["a/kernel"])


def test_a_fingerprint_is_of_the_values():
    """Not of order, precision of origin or memory layout; of names, shapes and numbers."""
    fingerprint = weights.fingerprint(ARRAYS)
    assert len(fingerprint) == 12
    assert weights.fingerprint(dict(reversed(ARRAYS.items()))) == fingerprint
    assert (
        weights.fingerprint({name: np.asfortranarray(a.astype(np.float64)) for name, a in ARRAYS.items()})
        == fingerprint
    )
    others = [
        {**ARRAYS, "b": ARRAYS["b"] * 2},
        {**ARRAYS, "b": ARRAYS["b"][None]},
        {"a/kernel": ARRAYS["a/kernel"], "c": ARRAYS["b"]},
    ]
    assert len({fingerprint, *map(weights.fingerprint, others)}) == 4


def test_a_missing_file_s_name_says_what_to_convert(tmp_path):
    families = ("adm", "karlo-decoder")
    for name, meant in (("adm", families[:1]), ("my-karlo", families[1:]), ("base", families)):
        with pytest.raises(UserError) as raised:
            weights.peek(tmp_path / "karlo" / f"{name}.safetensors", families)
        assert re.findall(r"vf\.pretrained\.convert (\S+)", str(raised.value)) == list(meant)


def test_files_that_are_something_else(tmp_path):
    path = tmp_path / "w.safetensors"
    with pytest.raises(UserError, match=r"no weights at .*rgb_scratch.* -m vf\.pretrained\.convert i3d"):
        weights.load(path, "i3d")
    path.write_bytes(b"hello")
    with pytest.raises(UserError, match="no whole file of i3d weights"):
        weights.load(path, "i3d")
    save_file(ARRAYS, path)
    with pytest.raises(UserError, match="not written by the converter"):
        weights.load(path, "i3d")
    weights.save(path, "c3d", ARRAYS, {})
    with pytest.raises(UserError, match="holds weights of c3d"):
        weights.load(path, "i3d")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="other values than were written"):
        weights.load(path, "c3d")
    path.write_bytes(data[:-4])
    with pytest.raises(UserError, match="no whole file"):
        weights.load(path, "c3d")


def test_renaming_covers_every_array():
    table = {"ours": Origin("theirs", (1, 0)), "bias": Origin("b")}
    shapes = {"ours": (3, 2), "bias": (3,)}
    arrays = {"theirs": np.arange(6.0).reshape(2, 3), "b": np.ones((1, 3, 1)), "count": np.ones(())}
    made = names.rename(arrays, table, shapes, ignored=lambda name: name == "count")
    np.testing.assert_array_equal(made["ours"], arrays["theirs"].T)
    assert made["bias"].shape == (3,)
    assert made["ours"].dtype == np.float32
    with pytest.raises(ValueError, match="1 not of this network: count"):
        names.rename(arrays, table, shapes)
    with pytest.raises(ValueError, match="1 missing: b"):
        names.rename({"theirs": arrays["theirs"]}, table, shapes)
    with pytest.raises(ValueError, match=r"theirs is \[3, 2\] and should be \[2, 3\]"):
        names.rename({"theirs": arrays["theirs"], "b": np.ones(3)}, table, {**shapes, "ours": (2, 3)})
    with pytest.raises(ValueError, match="NaN or infinities: b"):
        names.rename({"theirs": arrays["theirs"], "b": np.full(3, np.inf)}, table, shapes)


def test_the_command_reports_errors_in_one_line(tmp_path):
    command = [sys.executable, "-m", "vf.pretrained.convert", "i3d", f"--source={tmp_path / 'x.pt'}"]
    found = subprocess.run(
        [*command, f"--out={tmp_path / 'y.safetensors'}"], capture_output=True, text=True, check=False
    )
    assert found.returncode == 2
    assert found.stderr.count("\n") == 1
    assert re.fullmatch(r"vf: no weights at .*x\.pt: name the file or folder \(--source\)\n", found.stderr)
    (tmp_path / "y.safetensors").write_text("mine")
    with pytest.raises(UserError, match="exists"):
        convert.convert("i3d", tmp_path / "x.pt", tmp_path / "y.safetensors")
    assert (tmp_path / "y.safetensors").read_text() == "mine"
