"""PyTorch's files, written by PyTorch, read without it."""

import argparse
import collections
import datetime
import enum
import functools
import os
import pathlib
import pickle

import numpy as np
import pytest

from vf.pretrained import files, torch_file
from vf.types import UserError

torch = pytest.importorskip("torch")


class Net(torch.nn.Module):
    """Parameters, views, buffers and kinds of number as real files have them."""

    def __init__(self):
        super().__init__()
        self.a = torch.nn.Linear(3, 4)
        self.b = torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
        self.w = torch.nn.Parameter(torch.randn(4, 2).t())  # a view: strides are not those of a fresh array
        self.register_buffer("short", torch.randn(3).half())
        self.register_buffer("shorter", torch.randn(3).bfloat16())
        self.register_buffer("tail", torch.arange(10)[4:])

    def forward(self, x):
        return self.b(self.a(x))


def same(found, net, prefix=""):
    state = net.state_dict()
    assert set(found) == {prefix + name for name in state}
    for name, tensor in state.items():
        array = found[prefix + name]
        assert str(array.dtype) == str(tensor.dtype).removeprefix("torch.")
        np.testing.assert_array_equal(array.astype(np.float64), tensor.double().numpy())


def test_torch_zip_and_legacy(tmp_path):
    net = Net()
    torch.save(net.state_dict(), tmp_path / "new.pt")
    same(torch_file.read(tmp_path / "new.pt"), net)
    about = {"model": net.state_dict(), "epoch": 3, "flags": [1, "two", None], "best": {"loss": 0.5}}
    torch.save(about, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    same(torch_file.read(tmp_path / "old.pt"), net, "model.")
    assert torch_file.is_legacy(tmp_path / "old.pt")
    assert not torch_file.is_legacy(tmp_path / "new.pt")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript(tmp_path):
    net = Net().eval()
    torch.jit.script(net).save(tmp_path / "scripted.pt")
    torch.jit.trace(net, torch.zeros(2, 3)).save(tmp_path / "traced.pt")
    for name in ("scripted", "traced"):
        found = files.read(tmp_path / f"{name}.pt")
        assert found.format == "torchscript"
        same(found.arrays, net)


def test_two_names_of_one_storage(tmp_path):
    weight = torch.arange(12.0).reshape(3, 4)
    for new in (True, False):
        torch.save(
            {"a": weight, "b": weight[1:], "c": weight.t()}, tmp_path / "x.pt", _use_new_zipfile_serialization=new
        )
        found = torch_file.read(tmp_path / "x.pt")
        np.testing.assert_array_equal(found["b"], weight[1:])
        np.testing.assert_array_equal(found["c"], weight.t())


class Settings(dict):
    """An object of training code, which must never be made here."""

    made = 0

    def __init__(self, *args, **more):
        super().__init__(*args, **more)
        Settings.made += 1

    def __setstate__(self, state):
        Settings.made += 1

    def __reduce__(self):
        return Settings, (), {"width": 3}, None, iter(self.items())


class Kind(enum.Enum):
    BIG = 1


class Sub(torch.Tensor):
    pass


def beside(net) -> dict:
    """What training code saves beside weights."""
    loop = Settings()
    loop["self"] = loop
    return {
        "best": np.float64(0.5), "losses": np.arange(3.0), "texts": np.array(["a", None]), "name": np.str_("a"),
        "records": np.rec.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f4")]), "rng": np.random.default_rng(0),
        "dir": pathlib.PurePosixPath("/x"), "log": collections.defaultdict(list, a=[1]), "seen": {1, 2},
        "counts": collections.Counter("aab"), "kind": Kind.BIG, "kinds": {Kind.BIG: 1, pathlib.Path("a"): 2},
        "since": datetime.datetime(2020, 1, 2), "flags": argparse.Namespace(lr=1e-4, net=net.a), "loop": loop,
        "bound": "abc".upper, "rest": functools.partial(max, 3), "dtype": torch.float16, "range": range(3), "z": 1j,
        "sparse": torch.eye(2).to_sparse(), "device": torch.device("cpu"), "slice": slice(1),
        "float8": torch.ones(2).to(torch.float8_e5m2),
    }  # fmt: skip


@pytest.mark.parametrize("new", [True, False])
def test_whatever_lies_beside_the_weights(tmp_path, new):
    """None of it is made, and every tensor is read."""
    net = Net()
    state = collections.OrderedDict(net.state_dict())
    state["kept"] = torch.nn.Parameter(torch.randn(3))
    state["kept"].why = "a parameter with an attribute of its own"
    state["sub"] = torch.randn(2, 3).as_subclass(Sub)
    state["buffer"] = torch.nn.Buffer(torch.randn(2))
    state["wide"] = torch.arange(6).to(torch.uint16)[2:]
    state["turning"] = torch.randn(2, dtype=torch.complex64)
    saved = {"net": state, "mine": Settings(inner={"w": state["a.weight"]}), "all": net, **beside(net)}
    torch.save(saved, tmp_path / "x.pt", _use_new_zipfile_serialization=new)
    Settings.made = 0
    found = torch_file.read(tmp_path / "x.pt")
    assert Settings.made == 0
    for name, tensor in state.items():
        array = found[f"net.{name}"]
        assert str(array.dtype) == str(tensor.dtype).removeprefix("torch.")
        np.testing.assert_array_equal(np.asarray(array, complex), np.asarray(tensor.detach().to(torch.complex128)))
    same({name: found[name] for name in found if name.startswith("all.")}, net, "all.")
    np.testing.assert_array_equal(found["mine.inner.w"], state["a.weight"])
    np.testing.assert_array_equal(found["flags.net.weight"], net.a.weight.detach())
    np.testing.assert_array_equal(found["losses"], np.arange(3.0))


def test_pickles_of_arrays_with_something_beside_them(tmp_path):
    tree = {"params": {"w": np.arange(3.0)}, "config": Settings(), "dir": pathlib.PurePosixPath("/x"), "kind": Kind.BIG}
    Settings.made = 0
    for protocol in (2, 4):
        (tmp_path / "x.pkl").write_bytes(pickle.dumps(tree, protocol))
        found = files.read(tmp_path / "x.pkl").arrays
        assert (found.keys(), Settings.made) == ({"params/w"}, 0)
        np.testing.assert_array_equal(found["params/w"], tree["params"]["w"])


def test_a_pickle_executes_no_code(tmp_path):
    """Neither in torch's container nor as a bare pickle; the call that it asks for is named, and not made."""

    class Foreign:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'done'}",)

    torch.save({"w": torch.zeros(2), "x": Foreign()}, tmp_path / "a.pt")
    torch.save({"w": torch.zeros(2), "x": Foreign()}, tmp_path / "b.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "c.pkl").write_bytes(pickle.dumps({"w": np.zeros(2), "x": Foreign()}))
    for name in ("a.pt", "b.pt", "c.pkl"):
        with pytest.raises(UserError, match=r"its pickle asks for (posix|nt)\.system"):
            files.read(tmp_path / name)
    assert not (tmp_path / "done").exists()


@pytest.mark.parametrize("new", [True, False])
def test_cut_off_files(tmp_path, new):
    torch.save({"w": torch.randn(100, 100)}, tmp_path / "x.pt", _use_new_zipfile_serialization=new)
    whole = (tmp_path / "x.pt").read_bytes()
    for size in (5, 200, len(whole) // 2, len(whole) - 30):
        (tmp_path / "cut.pt").write_bytes(whole[:size])
        with pytest.raises(UserError, match="cannot be read as weights"):
            files.read(tmp_path / "cut.pt")
