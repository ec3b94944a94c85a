"""Files as pytorch-fid, NVIDIA and jax-fid lay them out, written by the libraries that define the formats."""

import pickle
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from vf.nets.inception import Inception
from vf.pretrained import files, inception, weights

Row = tuple[str, str, int, int, int, int]  # torchvision's name, NVIDIA's, channels in and out, height and width


def block(name: str, scope: str, rows: list[Row]) -> list[Row]:
    return [(f"{name}.{ours}", f"layers.{scope}.{theirs}", *shape) for ours, theirs, *shape in rows]


def a(c: int, pooled: int) -> list[Row]:
    return [
        ("branch1x1", "conv", c, 64, 1, 1),
        ("branch5x5_1", "tower.conv", c, 48, 1, 1),
        ("branch5x5_2", "tower.conv_1", 48, 64, 5, 5),
        ("branch3x3dbl_1", "tower_1.conv", c, 64, 1, 1),
        ("branch3x3dbl_2", "tower_1.conv_1", 64, 96, 3, 3),
        ("branch3x3dbl_3", "tower_1.conv_2", 96, 96, 3, 3),
        ("branch_pool", "tower_2.conv", c, pooled, 1, 1),
    ]


def c(n: int) -> list[Row]:
    return [
        ("branch1x1", "conv", 768, 192, 1, 1),
        ("branch7x7_1", "tower.conv", 768, n, 1, 1),
        ("branch7x7_2", "tower.conv_1", n, n, 1, 7),
        ("branch7x7_3", "tower.conv_2", n, 192, 7, 1),
        ("branch7x7dbl_1", "tower_1.conv", 768, n, 1, 1),
        ("branch7x7dbl_2", "tower_1.conv_1", n, n, 7, 1),
        ("branch7x7dbl_3", "tower_1.conv_2", n, n, 1, 7),
        ("branch7x7dbl_4", "tower_1.conv_3", n, n, 7, 1),
        ("branch7x7dbl_5", "tower_1.conv_4", n, 192, 1, 7),
        ("branch_pool", "tower_2.conv", 768, 192, 1, 1),
    ]


def e(c: int) -> list[Row]:
    return [
        ("branch1x1", "conv", c, 320, 1, 1),
        ("branch3x3_1", "tower_conv", c, 384, 1, 1),
        ("branch3x3_2a", "tower_mixed_conv", 384, 384, 1, 3),
        ("branch3x3_2b", "tower_mixed_conv_1", 384, 384, 3, 1),
        ("branch3x3dbl_1", "tower_1_conv", c, 448, 1, 1),
        ("branch3x3dbl_2", "tower_1_conv_1", 448, 384, 3, 3),
        ("branch3x3dbl_3a", "tower_1_mixed_conv", 384, 384, 1, 3),
        ("branch3x3dbl_3b", "tower_1_mixed_conv_1", 384, 384, 3, 1),
        ("branch_pool", "tower_2_conv", c, 192, 1, 1),
    ]


UNITS: list[Row] = [
    ("Conv2d_1a_3x3", "layers.conv", 3, 32, 3, 3),
    ("Conv2d_2a_3x3", "layers.conv_1", 32, 32, 3, 3),
    ("Conv2d_2b_3x3", "layers.conv_2", 32, 64, 3, 3),
    ("Conv2d_3b_1x1", "layers.conv_3", 64, 80, 1, 1),
    ("Conv2d_4a_3x3", "layers.conv_4", 80, 192, 3, 3),
    *block("Mixed_5b", "mixed", a(192, 32)),
    *block("Mixed_5c", "mixed_1", a(256, 64)),
    *block("Mixed_5d", "mixed_2", a(288, 64)),
    ("Mixed_6a.branch3x3", "layers.mixed_3.conv", 288, 384, 3, 3),
    ("Mixed_6a.branch3x3dbl_1", "layers.mixed_3.tower.conv", 288, 64, 1, 1),
    ("Mixed_6a.branch3x3dbl_2", "layers.mixed_3.tower.conv_1", 64, 96, 3, 3),
    ("Mixed_6a.branch3x3dbl_3", "layers.mixed_3.tower.conv_2", 96, 96, 3, 3),
    *block("Mixed_6b", "mixed_4", c(128)),
    *block("Mixed_6c", "mixed_5", c(160)),
    *block("Mixed_6d", "mixed_6", c(160)),
    *block("Mixed_6e", "mixed_7", c(192)),
    ("Mixed_7a.branch3x3_1", "layers.mixed_8.tower.conv", 768, 192, 1, 1),
    ("Mixed_7a.branch3x3_2", "layers.mixed_8.tower.conv_1", 192, 320, 3, 3),
    ("Mixed_7a.branch7x7x3_1", "layers.mixed_8.tower_1.conv", 768, 192, 1, 1),
    ("Mixed_7a.branch7x7x3_2", "layers.mixed_8.tower_1.conv_1", 192, 192, 1, 7),
    ("Mixed_7a.branch7x7x3_3", "layers.mixed_8.tower_1.conv_2", 192, 192, 7, 1),
    ("Mixed_7a.branch7x7x3_4", "layers.mixed_8.tower_1.conv_3", 192, 192, 3, 3),
    *block("Mixed_7b", "mixed_9", e(1280)),
    *block("Mixed_7c", "mixed_10", e(2048)),
]


@pytest.fixture(scope="module")
def public() -> dict[str, np.ndarray]:
    """pytorch-fid's state dict, whose gammas are 1 as in the real file."""
    rng = np.random.default_rng(0)
    made: dict[str, np.ndarray] = {}
    for name, _, inputs, outputs, height, width in UNITS:
        made[f"{name}.conv.weight"] = rng.standard_normal((outputs, inputs, height, width), np.float32)
        made[f"{name}.bn.weight"] = np.ones(outputs, np.float32)
        for moment in ("bias", "running_mean", "running_var"):
            made[f"{name}.bn.{moment}"] = rng.uniform(0.1, 1, outputs).astype(np.float32)
        made[f"{name}.bn.num_batches_tracked"] = np.zeros((), np.int64)
    made["fc.weight"] = rng.standard_normal((1008, 2048), np.float32)
    made["fc.bias"] = rng.standard_normal(1008, np.float32)
    return made


@pytest.fixture(scope="module")
def ours(public: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return inception.canonical(public)[0]


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    return found.keys() == expected.keys() and all(np.array_equal(found[name], expected[name]) for name in expected)


def nvidias(public: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    made = {"output.weight": public["fc.weight"], "output.bias": public["fc.bias"]}
    for name, theirs, *_ in UNITS:
        made[f"{theirs}.weight"] = public[f"{name}.conv.weight"]
        for x, y in (("beta", "bias"), ("mean", "running_mean"), ("var", "running_var")):
            made[f"{theirs}.{x}"] = public[f"{name}.bn.{y}"]
    return made


def test_the_network_has_94_units() -> None:
    assert len(UNITS) == 94
    assert inception.units() == {name.replace(".", "/"): theirs.removeprefix("layers.") for name, theirs, *_ in UNITS}


def test_every_array_is_mapped(public: dict[str, np.ndarray], ours: dict[str, np.ndarray]) -> None:
    for name, *_ in UNITS:
        path = name.replace(".", "/")
        np.testing.assert_array_equal(ours[f"{path}/kernel"], public[f"{name}.conv.weight"].transpose(2, 3, 1, 0))
        for x, y in (("gamma", "weight"), ("beta", "bias"), ("mean", "running_mean"), ("var", "running_var")):
            np.testing.assert_array_equal(ours[f"{path}/{x}"], public[f"{name}.bn.{y}"])
    assert len(ours) == 5 * len(UNITS)
    assert all(array.dtype == np.float32 and array.flags.c_contiguous for array in ours.values())


def test_pytorch_fids_file(public: dict[str, np.ndarray], ours: dict[str, np.ndarray], tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({name: torch.from_numpy(array) for name, array in public.items()}, tmp_path / "inception.pth")
    found = files.read(tmp_path / "inception.pth")
    made, about = inception.canonical(found.arrays)
    assert same(made, ours)
    assert about == {"layout": "pytorch-fid", "classes": 1008, "licence": "Apache-2.0 (TensorFlow)"}


def test_nvidias_torchscript(public: dict[str, np.ndarray], ours: dict[str, np.ndarray], tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")

    class Folder(torch.nn.Module):
        def forward(self, x):
            return x

    root = Folder()
    for name, array in nvidias(public).items():
        *folders, last = name.split(".")
        place = root
        for folder in folders:
            if not hasattr(place, folder):
                place.add_module(folder, Folder())
            place = getattr(place, folder)
        place.register_parameter(last, torch.nn.Parameter(torch.from_numpy(array)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(root).save(str(tmp_path / "inception-2015-12-05.pt"))
    found = files.read(tmp_path / "inception-2015-12-05.pt")
    assert found.format == "torchscript"
    made, about = inception.canonical(found.arrays)
    assert same(made, ours)  # gamma, which the file lacks, is 1
    assert about["layout"] == "nvidia"


def test_jax_fids_pickle(public: dict[str, np.ndarray], ours: dict[str, np.ndarray], tmp_path: Path) -> None:
    tree: dict = {"fc": {"kernel": public["fc.weight"].T, "bias": public["fc.bias"]}}
    for name, *_ in UNITS:
        place = tree
        for part in name.split("."):
            place = place.setdefault(part, {})
        place["conv"] = {"kernel": public[f"{name}.conv.weight"].transpose(2, 3, 1, 0)}
        place["bn"] = {
            x: jnp.asarray(public[f"{name}.bn.{y}"])
            for x, y in (("scale", "weight"), ("bias", "bias"), ("mean", "running_mean"), ("var", "running_var"))
        }
    with (tmp_path / "inception_v3_weights_fid.pickle").open("wb") as file:
        pickle.dump(tree, file)
    made, about = inception.canonical(files.read(tmp_path / "inception_v3_weights_fid.pickle").arrays)
    assert same(made, ours)
    assert about["layout"] == "jax-fid"


def test_a_gamma_that_is_not_one_is_preserved(public: dict[str, np.ndarray]) -> None:
    gamma = np.linspace(0.5, 2, 32, dtype=np.float32)
    made, _ = inception.canonical(public | {"Conv2d_1a_3x3.bn.weight": gamma})
    np.testing.assert_array_equal(made["Conv2d_1a_3x3/gamma"], gamma)


def test_wrapped_names(public: dict[str, np.ndarray], ours: dict[str, np.ndarray]) -> None:
    made, _ = inception.canonical({f"state_dict.module.{name}": array for name, array in public.items()})
    assert same(made, ours)


def test_our_file_holds_the_networks_parameters(ours: dict[str, np.ndarray], tmp_path: Path) -> None:
    weights.save(tmp_path / "inception.safetensors", "inception", ours, {"layout": "pytorch-fid"})
    found = weights.load(tmp_path / "inception.safetensors", "inception")
    shape = jax.ShapeDtypeStruct((1, 299, 299, 3), np.float32)
    expected = jax.eval_shape(Inception().init, jax.random.key(0), shape)["params"]
    shapes = {name: leaf.shape for name, leaf in flatten_dict(expected, sep="/").items()}
    assert {name: array.shape for name, array in flatten_dict(found.tree(), sep="/").items()} == shapes


def changed(public: dict[str, np.ndarray], **arrays) -> dict[str, np.ndarray]:
    """With arrays replaced, or left out where None."""
    return {name: array for name, array in (public | arrays).items() if array is not None}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"fc.weight": np.zeros((1000, 2048)), "fc.bias": np.zeros(1000)}, "1000 classes are torchvision's"),
        ({"fc.bias": np.zeros(1000)}, "has 1008 classes"),
        ({"fc.weight": None}, "fc.weight missing"),
        ({"Mixed_7c.branch_pool.bn.bias": None}, "1 missing: Mixed_7c.branch_pool.bn.bias"),
        ({"AuxLogits.fc.bias": np.zeros(3)}, "1 not of this network: AuxLogits.fc.bias"),
        ({"Mixed_5b.branch5x5_2.conv.weight": np.zeros((64, 48, 3, 3))}, r"is \[3, 3, 48, 64\] and should be \[5, 5,"),
        (
            {"Mixed_6b.branch7x7_2.conv.weight": np.zeros((128, 128, 7, 1))},
            r"is \[7, 1, 128, 128\] and should be \[1, 7",
        ),
        ({"Mixed_6b.branch1x1.conv.weight": np.zeros((192, 768))}, "branch1x1.conv.weight"),
        ({"Conv2d_1a_3x3.bn.running_var": np.full(32, np.nan)}, "with NaN or infinities: Conv2d_1a_3x3.bn.running_var"),
    ],
)
def test_other_networks_are_refused(public: dict[str, np.ndarray], arrays: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inception.canonical(changed(public, **arrays))


def test_logits_may_be_missing_where_names_identify_the_file(public: dict[str, np.ndarray], ours: dict) -> None:
    made, _ = inception.canonical(changed(nvidias(public), **{"output.weight": None, "output.bias": None}))
    assert same(made, ours)
    with pytest.raises(ValueError, match=r"output.weight is \[1000, 2048\]"):
        inception.canonical(changed(nvidias(public), **{"output.weight": np.zeros((1000, 2048))}))


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="none of its 1 names is of FID's network: take pytorch-fid's"):
        inception.canonical({"conv1.weight": np.zeros((64, 3, 7, 7))})
    with pytest.raises(ValueError, match="none of its 0 names"):
        inception.canonical({})
