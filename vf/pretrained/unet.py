"""Converts public files of the ADM family of U-Nets to ours and back: names, shapes and layouts.

There are two sets of names for the same network:

    openai      guided-diffusion's, and Karlo's own: input_blocks.5.1.qkv.weight, ...
    diffusers   UNet2DModel's and UNet2DConditionModel's: down_blocks.1.attentions.0.to_q.weight, ...

Every array of ours is one of theirs with its axes permuted, or a joint projection that diffusers stores in parts.
Nothing is computed, so that converting there and back is the identity to the last bit.
"""

import functools
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax.traverse_util import flatten_dict

from vf.nets.unet import UNet
from vf.pretrained.names import list_first
from vf.pretrained.safetensors_file import Lazy, release

LAYOUTS = ("openai", "diffusers")
ROOTS = ("time_embed.0.weight", "time_embedding.linear_1.weight")  # an array that every network has, by layout
DTYPES = ("float32", "float16", "bfloat16")
SCHEDULES = {"squaredcos_cap_v2": "cosine", "linear": "linear"}  # diffusers' names -> vf.diffusion.schedule's
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x_0"}
_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}
# Layers of a residual block and of attention: {our name: (OpenAI's, diffusers')}.
_RES = {
    "norm_in": ("in_layers.0", "norm1"), "conv_in": ("in_layers.2", "conv1"), "emb": ("emb_layers.1", "time_emb_proj"),
    "norm_out": ("out_layers.0", "norm2"), "conv_out": ("out_layers.3", "conv2"),
    "skip": ("skip_connection", "conv_shortcut"),
}  # fmt: skip
_ATTENTION = {  # diffusers has several layers for one of ours
    "norm": ("norm", "group_norm"), "qkv": ("qkv", "to_q to_k to_v"), "out": ("proj_out", "to_out.0"),
    "context_kv": ("encoder_kv", "add_k_proj add_v_proj"),
}  # fmt: skip
_OUTSIDE = {
    "conv_in": ("input_blocks.0.0", "conv_in"), "norm_out": ("out.0", "conv_norm_out"),
    "conv_out": ("out.2", "conv_out"), "embed/time/hidden": ("time_embed.0", "time_embedding.linear_1"),
    "embed/time/out": ("time_embed.2", "time_embedding.linear_2"), "embed/label": ("label_emb", "class_embedding"),
}  # fmt: skip
# Axes of length 1 of layers that are dense here, and convolutions in their files.
_CONVOLVED = {"openai": {"skip": 2, "qkv": 1, "out": 1, "context_kv": 1}, "diffusers": {"skip": 2}}


class Storage(Protocol):
    """How one array of ours is stored in a public file: under `names`, each of `shape`."""

    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def our_shape(self) -> tuple[int, ...]: ...
    def to_ours(self, parts: Iterable[np.ndarray]) -> np.ndarray: ...
    def to_theirs(self, array: np.ndarray) -> list[np.ndarray]: ...


class Link(NamedTuple):
    """How one array of ours is stored in a public file.

    Attributes:
        names: its names there; several where ours is a joint projection of parts.
        shape: shape of each of them.
        our_shape: shape of ours.
        order: order of a joint projection's channels, see `vf.nets.layers.HEADS`.
        head_dim: channels of a head in a joint projection.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    our_shape: tuple[int, ...]
    order: str = "new"
    head_dim: int = 1

    def to_ours(self, parts: Iterable[np.ndarray]) -> np.ndarray:
        """Our array, from theirs."""
        parts_2d = [
            np.asarray(part).reshape(part.shape[:2] if len(self.our_shape) == 2 else part.shape) for part in parts
        ]
        x = parts_2d[0] if len(parts_2d) == 1 else self._join(np.stack(parts_2d))
        return x.transpose((2, 3, 1, 0)) if x.ndim == 4 else x.T if self._is_transposed else x

    def to_theirs(self, array: np.ndarray) -> list[np.ndarray]:
        """Their arrays, from ours."""
        x = array.transpose((3, 2, 0, 1)) if array.ndim == 4 else array.T if self._is_transposed else array
        parts = [x] if len(self.names) == 1 else list(self._split(x))
        return [part.reshape(self.shape) for part in parts]

    @property
    def _is_transposed(self) -> bool:
        return len(self.our_shape) == 2 and not self.names[0].startswith(("label_emb", "class_embedding"))

    def _join(self, parts: np.ndarray) -> np.ndarray:
        packed = "p (n d) ... -> (p n d) ..." if self.order == "new" else "p (n d) ... -> (n p d) ..."
        return rearrange(parts, packed, d=self.head_dim)

    def _split(self, x: np.ndarray) -> np.ndarray:
        packed = "(p n d) ... -> p (n d) ..." if self.order == "new" else "(n p d) ... -> p (n d) ..."
        return rearrange(x, packed, d=self.head_dim, p=len(self.names))


@functools.cache
def shapes(net: UNet, channels: int = 3) -> dict[str, tuple[int, ...]]:
    """{path: shape} of the parameters of a U-Net on images of so many channels, computed without making them."""
    side = net.patch * 2 ** (len(net.width_mult) - 1)
    inputs: dict[str, Any] = {}
    if net.num_classes:
        inputs["label"] = jnp.zeros(1, jnp.int32)
    if net.cond_dim:
        inputs["cond"] = jnp.zeros((1, net.cond_dim))
    if net.context_dim:
        inputs["context"] = jnp.zeros((1, 1, net.context_dim))
    z = jnp.zeros((1, 1, side, side, channels))
    tree = jax.eval_shape(lambda: net.init(jax.random.key(0), z, jnp.zeros(1, jnp.int32), **inputs))["params"]
    return {path: leaf.shape for path, leaf in flatten_dict(tree, sep="/").items()}


def links(net: UNet, layout: str, channels: int = 3) -> dict[str, Link]:
    """{our path: how it is stored} of every array of a U-Net that reads so many channels; `layout` is one of
    `LAYOUTS`."""
    links_of = {}
    for path, our_shape in shapes(net, channels).items():
        scope, _, leaf = path.rpartition("/")
        names = _names(net, scope, LAYOUTS.index(layout))
        shape = our_shape
        if leaf == "kernel":
            ones = 0 if scope in _OUTSIDE else _CONVOLVED[layout].get(scope.rpartition("/")[2], 0)
            shape = tuple(our_shape[axis] for axis in ((3, 2, 0, 1) if len(our_shape) == 4 else (1, 0))) + (1,) * ones
        shape = (shape[0] // len(names), *shape[1:])
        theirs = tuple(f"{name}.{_LEAVES[leaf]}" for name in names)
        links_of[path] = Link(theirs, shape, our_shape, net.attention_order, net.head_dim)
    return links_of


def _names(net: UNet, scope: str, place: int) -> tuple[str, ...]:
    """Names of a layer in the layout LAYOUTS[place]; several where it stores a joint projection in parts."""
    if scope in _OUTSIDE:
        return (_OUTSIDE[scope][place],)
    block, *inside = scope.split("/")
    attention = inside[0] == "attention"
    layers = (_ATTENTION if attention else _RES)[inside[-1]][place]
    return tuple(f"{_block(net, block, attention)[place]}.{layer}" for layer in layers.split())


def _block(net: UNet, block: str, attention: bool) -> tuple[str, str]:
    """The names of a block of ours in both layouts: of its attention, or of its residual block."""
    last, per = len(net.width_mult) - 1, net.num_res_blocks + 1  # blocks per level, including the one that resamples
    kind, number, *which = block.split("_")
    level = int(number)
    part = "attentions" if attention else "resnets"
    if kind == "middle":
        return f"middle_block.{1 if attention else (1 + net.middle_attention) * level}", f"mid_block.{part}.{level}"
    resamples = which == ["resample"]
    index = per - 1 if resamples else int(which[0])
    if kind == "down":
        inner = f"down_blocks.{level}.{'downsamplers.0' if resamples else f'{part}.{index}'}"
        return f"input_blocks.{1 + level * per + index}.{int(attention)}", inner
    # On the way up the last block of a level resamples too, after its attention where there is one.
    second = 1 + (2**level in net.attention) if resamples else int(attention)
    inner = f"up_blocks.{last - level}.{'upsamplers.0' if resamples else f'{part}.{index}'}"
    return f"output_blocks.{(last - level) * per + index}.{second}", inner


def layout_of(arrays: Collection[str]) -> str:
    """The layout, of `LAYOUTS`, that these names have; "" for neither."""
    if any(name.startswith("input_blocks.") for name in arrays):
        return "openai"
    return "diffusers" if any(name.startswith("down_blocks.") for name in arrays) else ""


def infer_fields(arrays: Mapping[str, np.ndarray], layout: str, *, upsampler: bool = False) -> dict[str, Any]:
    """Fields of `UNet`, inferred from names and shapes; from those of vectors where possible, since matrices may be
    transposed.

    upsampler: whether it is one, which reads a picture beside the noised one, and may have no attention in its middle,
        or have the step added.

    Raises:
        ValueError: a necessary array is missing, or the network is of another kind (resampling by convolutions,
            additive steps, another number of colours).
    """
    size = Sizes(arrays)
    if layout == "openai":
        features = size("time_embed.2.bias")
        outputs = size.count(r"output_blocks\.(\d+)\.")
        up = [n for n in range(outputs) if size.any(rf"output_blocks\.{n}\.[12]\.(in_layers|conv|op)")]
        per = up[0] + 1 if up else outputs
        levels = outputs // per
        first_blocks = [
            (levels - 1 - level) * per for level in range(levels)
        ]  # first block of each level on the way up
        widths = [
            size(f"output_blocks.{n}.0.out_layers.0.bias", f"output_blocks.{n + 1}.0.out_layers.0.bias")
            for n in first_blocks
        ]
        attends = [size.any(rf"output_blocks\.{n}\.1\.(norm|qkv|proj_out)") for n in first_blocks]
        if size.any(r"input_blocks\.\d+\.0\.op\.") or size.any(r"output_blocks\.\d+\.\d\.conv\."):
            raise ValueError("it resamples by convolutions, where ADM's networks have residual blocks")
        classes, first_conv, last_bias = "label_emb.weight", "input_blocks.0.0.weight", "out.2.bias"
        step = "input_blocks.1.0.emb_layers.1.bias"
    else:
        features = size("time_embedding.linear_2.bias")
        levels = size.count(r"up_blocks\.(\d+)\.")
        per = size.count(r"up_blocks\.0\.resnets\.(\d+)\.")
        widths = [
            size(f"down_blocks.{n}.resnets.0.norm2.bias", f"down_blocks.{n}.resnets.0.conv1.bias")
            for n in range(levels)
        ]
        attends = [size.any(rf"down_blocks\.{n}\.attentions") for n in range(levels)]
        if size.any(r"(down|up)samplers\.0\.conv\."):
            raise ValueError("it resamples by convolutions, where ADM's networks have residual blocks")
        classes, first_conv, last_bias = "class_embedding.weight", "conv_in.weight", "conv_out.bias"
        step = "down_blocks.0.resnets.0.time_emb_proj.bias"
    expected = 6 if upsampler else 3
    if (colours := size(first_conv, axis=1)) != expected and size(first_conv, axis=0) != expected:
        sees = "an upsampler sees 6" if upsampler else "a base generator sees 3: is it an upsampler?"
        raise ValueError(f"its input has {colours} channels, where {sees}")
    if (out := size(last_bias)) not in (3, 6):
        raise ValueError(f"it predicts {out} channels, where 3 or 6 (with a learned variance) were expected")
    scale_shift = size(step) == 2 * widths[0]
    if not (scale_shift or upsampler):
        raise ValueError("the step is added to features, where ADM's networks scale and shift them")
    width = features // 4
    mult = tuple(w // width if w % width == 0 else w / width for w in widths)
    middle = r"middle_block\.1\.norm" if layout == "openai" else r"mid_block\.attentions"
    more = {"middle_attention": size.any(middle), "scale_shift": scale_shift} if upsampler else {}
    return more | {
        "width": width, "width_mult": mult, "num_res_blocks": per - 1, "learned_variance": out == 6,
        "attention": tuple(2**level for level, attends_here in enumerate(attends) if attends_here),
        "num_classes": size(classes) if classes in arrays else 0,
    }  # fmt: skip


class Sizes:
    """Looks up sizes in the shapes of arrays."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.arrays = arrays

    def __call__(self, *names: str, axis: int = 0) -> int:
        """Length of an axis of the first of these arrays that exists. Raises ValueError where none does."""
        for name in names:
            if name in self.arrays and len(self.arrays[name].shape) > axis:
                return int(self.arrays[name].shape[axis])
        raise ValueError(f"1 missing: {names[0]}")

    def any(self, pattern: str) -> bool:
        """Whether the name of an array begins with the pattern."""
        return any(re.match(pattern, name) for name in self.arrays)

    def count(self, pattern: str) -> int:
        """One more than the largest number that the pattern's group matches. Raises ValueError where there is none."""
        numbers = [int(match[1]) for name in self.arrays if (match := re.match(pattern, name))]
        if not numbers:
            raise ValueError(f"no array is named as {pattern}")
        return max(numbers) + 1


def convert(arrays: Mapping[str, np.ndarray], table: Mapping[str, Storage]) -> dict[str, Lazy]:
    """{our path: float32 array}, each of which is made from views on the file when it is written.

    Raises:
        ValueError: arrays are missing, left over, or of another shape or a dtype not in `DTYPES`; and, when an array is
            made, where it has NaN or infinities.
    """
    expected = {name: link.shape for link in table.values() for name in link.names}
    problems = [
        list_first("missing", [name for name in expected if name not in arrays]),
        list_first("not of this network", [name for name in arrays if name not in expected]),
        list_first("of another shape", [
            f"{name} is {list(arrays[name].shape)} and should be {list(shape)}"
            for name, shape in expected.items() if name in arrays and arrays[name].shape != shape
        ]),
        list_first("of a dtype that float32 does not hold", [
            f"{name} is {arrays[name].dtype}" for name in expected
            if name in arrays and str(arrays[name].dtype) not in DTYPES
        ]),
    ]  # fmt: skip
    if any(problems):
        raise ValueError("; ".join(filter(None, problems)))

    def lazy(link: Storage) -> Lazy:
        def make() -> np.ndarray:
            parts = [np.asarray(arrays[name]) for name in link.names]
            array = np.ascontiguousarray(link.to_ours(parts), np.float32)
            release(parts[0])
            if not np.isfinite(array).all():
                raise ValueError(f"{' or '.join(link.names)} has NaN or infinities")
            return array

        return Lazy(link.our_shape, np.float32, make)

    return {path: lazy(link) for path, link in table.items()}


def export_arrays(
    arrays: Mapping[str, np.ndarray], table: Mapping[str, Storage], about: Mapping[str, Any]
) -> dict[str, Lazy]:
    """{their name: array}, each of which is made when it is written, in the dtype of the source by `about`.

    Texts are left out.

    Raises:
        ValueError: the public format has no place for an array.
    """
    if extra := [path for path in arrays if path not in table and not path.startswith("texts/")]:
        raise ValueError(list_first("without a place there", extra))

    def lazy(path: str, link: Storage, place: int) -> Lazy:
        dtype = np.dtype(about["other_dtypes"].get(path, about["dtype"]))

        def make() -> np.ndarray:
            array = np.ascontiguousarray(link.to_theirs(np.asarray(arrays[path]))[place], dtype)
            release(arrays[path])
            return array

        return Lazy(link.shape, dtype, make)

    return {name: lazy(path, link, place) for path, link in table.items() for place, name in enumerate(link.names)}


def dtypes(arrays: Mapping[str, np.ndarray], table: Mapping[str, Storage]) -> dict[str, Any]:
    """The dtypes of the source: `dtype`, that of most arrays, and `other_dtypes`, {our path: dtype} of the others."""
    # Where parts of an array differ, the dtype that represents the values of all.
    kinds = {
        path: max((str(arrays[name].dtype) for name in link.names), key=lambda kind: kind == "float32")
        for path, link in table.items()
    }
    most = max(sorted(set(kinds.values())), key=list(kinds.values()).count)
    return {"dtype": most, "other_dtypes": {path: kind for path, kind in kinds.items() if kind != most}}


def check_config(config: Mapping[str, Any], kind: str, required: Mapping[str, Any]) -> None:
    """Raises ValueError where a config.json of diffusers describes a network of another family."""
    if (kind_found := config.get("_class_name", kind)) != kind:
        raise ValueError(f"its config.json is of a {kind_found}, where a {kind} was expected")
    for name, value in required.items():
        if name in config and config[name] != value:
            raise ValueError(f"its config.json has {name} = {config[name]!r}, where {value!r} was expected")


def check_schedule(config: Mapping[str, Any]) -> None:
    """Raises ValueError where a scheduler_config.json of diffusers has betas of no schedule of ours."""
    for name in ("trained_betas", "rescale_betas_zero_snr"):
        if config.get(name):
            raise ValueError(f"its scheduler has {name}, which no schedule here has")
    if config.get("beta_schedule") == "linear":
        steps = config.get("num_train_timesteps", 1000)
        ends = (config.get("beta_start", 1e-4), config.get("beta_end", 0.02))
        if ends != (1e-4, 0.02) or steps != 1000:
            raise ValueError(
                f"its scheduler has betas from {ends[0]} to {ends[1]} in {steps} steps, and linear here is 0.0001 to "
                "0.02 in 1000"
            )


def check_openai(about: Mapping[str, Any]) -> None:
    """Raises ValueError for a network that guided-diffusion's code (and Karlo's) does not have."""
    fields = about["network"]
    if fields["patch"] != 1 or fields["norm_groups"] != 32:
        raise ValueError(
            f"that code has no patches and 32 groups in every norm, and this network has patch = {fields['patch']} and "
            f"norm_groups = {fields['norm_groups']}"
        )


def translate(name: str, value: str | None, known: Mapping[str, str]) -> str:
    """Our name for a value of diffusers; "" for None. Raises ValueError for an unknown value."""
    if value is not None and value not in known:
        raise ValueError(f"its scheduler has {name} = {value!r}, where one of {', '.join(known)} was expected")
    return known[value] if value is not None else ""


def diffusers_config(about: Mapping[str, Any], kinds: tuple[str, str, str, str]) -> dict[str, Any]:
    """Fields of config.json that both classes have.

    `kinds` are the classes of blocks: down with attention, down without, up with, up without.

    Raises:
        ValueError: diffusers has no such network.
    """
    fields = about["network"]
    if fields["patch"] != 1 or fields["width_mult"][0] != 1:
        raise ValueError("diffusers has no network with patches, or whose first level is not `width` wide")
    levels = [2**level in fields["attention"] for level in range(len(fields["width_mult"]))]
    return {
        "sample_size": about["image_size"], "in_channels": 3, "out_channels": 6 if fields["learned_variance"] else 3,
        "layers_per_block": fields["num_res_blocks"], "attention_head_dim": fields["head_dim"],
        "block_out_channels": [int(fields["width"] * mult) for mult in fields["width_mult"]],
        "down_block_types": [kinds[0] if attends else kinds[1] for attends in levels],
        "up_block_types": [kinds[2] if attends else kinds[3] for attends in reversed(levels)],
        "norm_num_groups": fields["norm_groups"], "norm_eps": 1e-5, "resnet_time_scale_shift": "scale_shift",
        "act_fn": "silu", "flip_sin_to_cos": True, "freq_shift": 0,
    }  # fmt: skip


def scheduler_config(about: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Fields of a scheduler_config.json of diffusers, for a scheduler of class `kind`."""
    theirs = {ours: name for known in (SCHEDULES, PREDICTIONS) for name, ours in known.items()}
    return {
        "_class_name": kind, "num_train_timesteps": about["schedule"]["steps"],
        "beta_schedule": theirs[about["schedule"]["name"]], "prediction_type": theirs[about["prediction"]],
        "variance_type": "learned_range" if about["network"]["learned_variance"] else "fixed_small",
        "clip_sample": True, "clip_sample_range": 1.0,
    }  # fmt: skip
