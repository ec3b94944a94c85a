"""CLIP (Radford et al. 2021): embeds frames and captions as unit vectors; CLIPSIM and frame consistency of these.

    CLIPSIM            mean over frames i of   u_i . v               u_i of frame i, v of the caption              (1)
    frame consistency  mean over frames i of   u_i . u_{i+1}                                                       (2)

Published values of CLIPSIM differ in more than the choice of frames. GODIVA (Wu et al. 2021), Make-A-Video and others
report (1) itself; CLIPScore's code (Hessel et al. 2021) puts "A photo depicts " before captions, and reports
2.5 max(0, cosine); a Hugging Face model multiplies by 100. ViT-B/32 is customary, and other models give other numbers.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jaxtyping import Float, Int, UInt8

from vf.nets import resize
from vf.nets.feature_network import Network
from vf.nets.vit import CLIP_B32, Config, Embed, Norm, blocks, describe

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The text encoder: a transformer in which a token attends to itself and those before it.

    Attributes:
        width, depth, heads, mlp, eps, act: as in `vit.Config`.
        context: largest number of tokens.
        vocabulary: number of different tokens; the last one ends a caption.
        dim: channels of an embedding, of captions and frames.
    """

    width: int = 512
    depth: int = 12
    heads: int = 8
    mlp: int = 2048
    context: int = 77
    vocabulary: int = 49408
    dim: int = 512
    eps: float = 1e-5
    act: str = "quick_gelu"


TEXT_B32 = TextConfig()


class CLIP(nn.Module):
    """Both encoders.

    Attributes:
        vision: sizes of the image encoder.
        language: sizes of the text encoder.
        precision: precision of products.
    """

    vision: Config = CLIP_B32
    language: TextConfig = TEXT_B32
    precision: Any = jax.lax.Precision.HIGHEST

    def setup(self) -> None:
        """Makes both encoders, and CLIP's learned temperature, which no metric uses."""
        self.image = Image(self.vision, self.language.dim, self.precision)
        self.text = Text(self.language, self.precision)
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(np.log(1 / 0.07)), (1,))

    def __call__(self, x: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Embeddings of pictures and captions, not normalised."""
        return self.image(x), self.text(tokens)


class Image(nn.Module):
    """The image encoder: pictures -> the projected class token."""

    config: Config
    dim: int
    precision: Any

    @nn.compact
    def __call__(self, x: Float[jax.Array, "b s s 3"]) -> Float[jax.Array, "b dim"]:
        """Embeddings of pictures. Raises ValueError for a size that the stored positions do not fit."""
        x = Embed(self.config, self.precision, name="embed")(x[:, None])
        x = blocks(self.config, None, self.precision, "blocks", Norm(self.config.eps, name="norm_pre")(x))
        x = Norm(self.config.eps, name="norm_post")(x[:, 0])
        return nn.Dense(self.dim, use_bias=False, precision=self.precision, name="proj")(x)


class Text(nn.Module):
    """The text encoder: tokens -> the projected last token of each caption.

    With `states` it returns (states of all tokens before projection, that).
    """

    config: TextConfig
    precision: Any = jax.lax.Precision.HIGHEST
    states: bool = False

    @nn.compact
    def __call__(self, tokens: Int[jax.Array, "b n"]) -> Any:
        """Embeddings of captions, which do not depend on tokens after their end. ValueError for too many tokens."""
        config, count = self.config, tokens.shape[1]
        if count > config.context:
            raise ValueError(f"expected captions of at most {config.context} tokens, got {count}")
        table = self.param("tokens", nn.initializers.normal(0.02), (config.vocabulary, config.width))
        positions = self.param("positions", nn.initializers.normal(0.01), (config.context, config.width))
        before = jnp.tril(jnp.ones((count, count), bool))
        x = blocks(config, before, self.precision, "blocks", table[tokens] + positions[:count])
        # The end has the greatest number, and argmax finds the first end, whether padding is 0 or further ends.
        end = tokens.argmax(1)[:, None, None]
        x = Norm(config.eps, name="norm")(x)
        last = jnp.take_along_axis(x, end, 1)[:, 0]
        embeddings = nn.Dense(config.dim, use_bias=False, precision=self.precision, name="proj")(last)
        return (x, embeddings) if self.states else embeddings


def unit(x: Any) -> jax.Array:
    """Divides vectors, along the last axis, by their length."""
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def preprocess(frames: UInt8[jax.Array, "b h w 3"], size: int) -> Float[jax.Array, "b size size 3"]:
    """Preprocesses pictures as CLIP's code does: see `clip_image`."""

    def matrix(side: int) -> np.ndarray:
        # The longer side is truncated to whole pixels, and the crop begins at half the excess, rounded to even, as in
        # torchvision; Hugging Face rounds it down, which differs by one pixel for one excess in four.
        long = int(size * side / min(frames.shape[1:3]))
        first = round((long - size) / 2)
        return resize.matrix("antialiased_bicubic", side, long)[first : first + size]

    rows, columns = (matrix(side) for side in frames.shape[1:3])
    x = resize.apply(frames.astype(jnp.float32), rows, columns, quantise=True)
    mean, std = (np.asarray(numbers, np.float32) for numbers in (MEAN, STD))
    return (x / 255 - mean) / std


def clip_image(
    params: Any,
    fingerprint: str,
    *,
    frames: int,
    vision: Config = CLIP_B32,
    language: TextConfig = TEXT_B32,
    exact: bool = True,
    normalised: bool = True,
) -> Network:
    """The network that gives an embedding of every frame: `.reshape(n, frames, -1)` gives [n frames dim].

    Frames are prepared as in OpenAI's code: short side to 224 pixels by Pillow's antialiased bicubic filter on 8 bits,
    which rounds after each of the two passes, then the centre, x / 255, and CLIP's mean and deviation.

    Args:
        params: parameters of `CLIP`, or of its image encoder alone, as the converter writes them.
        fingerprint: hash of the weights, for the protocol.
        frames: frames per clip, each of which is encoded.
        vision: sizes of the image encoder, `about["vision"]` of the converter's file.
        language: sizes of the text encoder, `about["language"]` of the converter's file, of which `dim` counts.
        exact: whether to compute in float32 on every platform; False takes the platform's default precision.
        normalised: whether embeddings are divided by their length, as the metrics take them; generators do not.
    """
    module = Image(vision, language.dim, jax.lax.Precision.HIGHEST if exact else None)

    def apply(params: Any, clips: UInt8[jax.Array, "b f h w 3"]) -> Float[jax.Array, "b d"]:
        if clips.shape[1] != frames:
            raise ValueError(f"expected clips of {frames} frames, got {clips.shape[1]}")
        x = preprocess(rearrange(clips, "b f h w c -> (b f) h w c"), vision.size)
        u: Any = module.apply({"params": params["image"]}, x)
        u = unit(u) if normalised else u
        return rearrange(u, "(b f) d -> b (f d)", f=frames)

    other_act = "".join({f", {act}": 0 for act in (vision.act, language.act) if act != CLIP_B32.act})
    protocol = {
        "network": f"CLIP, {'unit ' * normalised}embeddings of every frame; {describe(vision)}, {language.dim} numbers "
        f"each{other_act}",
        "weights": fingerprint, "frames": frames,
        "resize": f"antialiased_bicubic, rounded to 8 bits after each pass (Pillow), short side to {vision.size}, "
        "centre, then (x / 255 - CLIP's mean) / deviation",
        "precision": "float32" if exact else "default",
    }  # fmt: skip
    return Network("clip_image", frames * language.dim, params, apply, protocol)


def clip_text(
    params: Any,
    tokens: Int[jax.Array, "n t"],
    *,
    language: TextConfig = TEXT_B32,
    exact: bool = True,
) -> Float[jax.Array, "n dim"]:
    """Unit embeddings of captions, from tokens of `vf.nets.tokenizer`. Raises ValueError for too many tokens."""
    module = Text(language, jax.lax.Precision.HIGHEST if exact else None)
    return unit(module.apply({"params": params["text"]}, tokens))


def _units(x: np.ndarray, name: str) -> np.ndarray:
    x = np.asarray(x, np.float64)
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    if not np.isfinite(x).all() or (norm == 0).any():
        raise ValueError(f"expected finite embeddings of {name} other than 0")
    return x / norm


def clipsim(
    image: Float[np.ndarray, "n f d"],
    text: Float[np.ndarray, "n d"],
    *,
    scale: float = 1.0,
    floor: float | None = None,
) -> Float[np.ndarray, " n"]:
    """(1) of every clip with its caption: scale * mean over frames of the cosine, each at least `floor`, in float64.

    The protocol of a score must name, besides that of the network, `scale`, `floor`, the prefix before captions, and
    which caption of a clip is used. Papers on video mean cosines without scale and floor, the default; CLIPScore is
    scale=2.5, floor=0 with the prefix "A photo depicts ".

    Raises ValueError for other shapes, no frames, or embeddings that are 0 or not finite.
    """
    u, v = np.asarray(image), np.asarray(text)
    if u.ndim != 3 or v.ndim != 2 or u.shape[::2] != v.shape or not u.size:
        raise ValueError(f"expected embeddings [n f d] and [n d], got {list(u.shape)} and {list(v.shape)}")
    cosine = np.einsum("nfd,nd->nf", _units(u, "frames"), _units(v, "captions"))
    return scale * (cosine if floor is None else np.maximum(cosine, floor)).mean(1)


def frame_consistency(image: Float[np.ndarray, "n f d"]) -> Float[np.ndarray, " n"]:
    """(2) of every clip, in float64.

    Raises ValueError for other shapes, clips of one frame, or embeddings that are 0 or not finite.
    """
    u = np.asarray(image)
    if u.ndim != 3 or u.shape[1] < 2 or not u.size:
        raise ValueError(f"expected embeddings [n f d] of two frames or more, got {list(u.shape)}")
    u = _units(u, "frames")
    return np.einsum("nfd,nfd->nf", u[:, :-1], u[:, 1:]).mean(1)
