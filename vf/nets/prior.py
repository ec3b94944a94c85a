"""DALL-E 2's diffusion prior in Karlo's version: a transformer that denoises the embedding of a picture, given a text.

Its tokens are, each with a learned position added,

    states of the text's tokens | embedding of the text | noise level | noised embedding | a learned token

and a token attends to itself and to those before it that are not padding. What the last token has become is the
clean embedding (the prediction is of x_0). Embeddings are noised in units of their own statistics, (e - mean) / std.

A network that is conditioned on classes has one token in place of the text's: a learned one for each class.

Source: Ramesh et al., "Hierarchical text-conditional image generation with CLIP latents" (2022), section 2.2; Karlo
(Lee et al., 2022), and diffusers' PriorTransformer, from which the details are.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Num

from vf.nets.embed import PositionEmbed, check_input
from vf.nets.initial import ONES, ZEROS, Dense, Embed, Initializer
from vf.nets.layers import Dtype, Place, unconstrained
from vf.nets.unclip import Texts
from vf.nets.unet import REMAT
from vf.nets.vit import Norm, blocks

EPS = 1e-5  # of all layer norms
BEGINNING = Initializer(scale=0.02)  # of learned tokens and positions


@dataclasses.dataclass(frozen=True)
class Blocks:
    """The fields of the transformer's blocks, as `vit.blocks` takes them."""

    depth: int
    heads: int
    mlp: int
    eps: float = EPS
    act: str = "gelu"


class Prior(nn.Module):
    """The prior, on clips of one frame of one pixel, whose channels are the embedding's numbers: b 1 1 1 d.

    Attributes:
        dim: numbers of an embedding, of a picture as of a text.
        width: channels of a token.
        depth: number of blocks.
        heads: attention heads, which divide `width`.
        text_length: tokens of a text; 0 for a network of classes.
        texts: number of fixed texts, which labels select; the last one is the empty prompt, which stands for no text. 0
            for none: then no text is a learned one.
        num_classes: of a network of classes, which has one token more, for no class.
        mean_init, std_init: of the statistics of embeddings, which are parameters, so that checkpoints are complete,
            but are never trained, and not read by the network itself.
        dtype: of the computation.
        remat: what is computed again in the backward pass: "none", or a key of `vf.nets.unet.REMAT`.
        place: constrains the sharding of tokens.
    """

    dim: int
    width: int
    depth: int
    heads: int
    text_length: int = 0
    texts: int = 0
    num_classes: int = 0
    mean_init: Initializer = ZEROS
    std_init: Initializer = ONES
    positions_init: Initializer = BEGINNING
    query_init: Initializer = BEGINNING
    null_states_init: Initializer = BEGINNING
    null_pooled_init: Initializer = BEGINNING
    dtype: Dtype = jnp.float32
    remat: str = "none"
    place: Place = unconstrained

    @nn.compact
    def __call__(
        self,
        z: Float[Array, "b 1 1 1 d"],
        t: Num[Array, " b"],
        *,
        label: Int[Array, " b"] | None = None,
        text_states: Float[Array, "b n d"] | None = None,
        text_mask: Bool[Array, "b n"] | None = None,
        text_pooled: Float[Array, "b d"] | None = None,
        null: Bool[Array, " b"] | None = None,
        dropout_keys: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b 1 1 1 d"]:
        """Predicts clean embeddings, in units of the statistics.

        Args:
            z: noised embeddings in these units.
            t: steps.
            label: class, or row of the fixed texts; None for no class or no text.
            text_states, text_mask, text_pooled: CLIP's states of a text's tokens, those of them that are no padding,
                and the embedding of the whole text; all or none, in place of a row of the fixed texts.
            null: rows whose text is replaced by none.
            dropout_keys: unused, as there is no dropout.

        Raises:
            ValueError: a size does not fit, an input is missing, or it would be ignored.
        """
        if self.width % self.heads or self.width % 2:
            raise ValueError(f"width must be even and a multiple of heads = {self.heads}, got {self.width}")
        if z.shape[-1] != self.dim:
            raise ValueError(f"embeddings must have dim = {self.dim} numbers, got {z.shape[-1]}")
        rows, dense = len(z), {"features": self.width, "dtype": self.dtype}
        self.param("mean", self.mean_init, (self.dim,))
        self.param("std", self.std_init, (self.dim,))
        if self.text_length:
            states, mask, pooled = self._text(rows, label, text_states, text_mask, text_pooled, null)
            given = [Dense(**dense, name="states_in")(states), Dense(**dense, name="pooled_in")(pooled)[:, None]]
        else:
            check_input("text_states", text_states, False, "text_length")
            label = jnp.full(rows, self.num_classes) if label is None else label
            mask = jnp.ones((rows, 0), bool)
            given = [Embed(self.num_classes + 1, self.width, name="label", embedding_init=BEGINNING)(label)[:, None]]
        level = PositionEmbed(self.width, self.width, name="time")(t)
        noised = Dense(**dense, name="noised_in")(z[:, 0, 0, 0])
        query = jnp.broadcast_to(self.param("query", self.query_init, (self.width,)), (rows, self.width))
        tokens = [*given, level[:, None], noised[:, None], query[:, None]]
        x = jnp.concatenate([token.astype(self.dtype) for token in tokens], axis=1)
        count = x.shape[1]
        positions = self.param("positions", self.positions_init, (count, self.width))
        x = self.place(x + positions.astype(self.dtype))

        mask = jnp.pad(mask, ((0, 0), (0, count - mask.shape[1])), constant_values=True)
        # Padding attends to itself too, so that no row of attention is empty; nobody attends to padding.
        attends = jnp.tril(mask[:, None, None, :] & jnp.ones((count, 1), bool)) | jnp.eye(count, dtype=bool)
        saved = None if self.remat == "none" else REMAT[self.remat]
        fields = Blocks(self.depth, self.heads, 4 * self.width)
        x = blocks(fields, attends, None, "blocks", x, dtype=self.dtype, saved=saved)
        last = Norm(EPS, dtype=self.dtype, name="norm")(x[:, -1])
        return Dense(self.dim, name="out")(last)[:, None, None, None].astype(jnp.float32)

    def _text(
        self, rows: int, label: Array | None, states: Array | None, mask: Array | None, pooled: Array | None,
        null: Array | None,
    ) -> tuple[Array, Array, Array]:  # fmt: skip
        """(states, mask, embedding) of the text of each row."""
        texts: Any = Texts(self.texts, self.text_length, self.dim, name="texts") if self.texts else None
        if self.texts:
            none = texts(jnp.full(rows, self.texts - 1))
        else:
            shape = (self.text_length, self.dim)
            learned = self.param("null_states", self.null_states_init, shape)
            learned_pooled = self.param("null_pooled", self.null_pooled_init, (self.dim,))
            none = (
                jnp.broadcast_to(learned, (rows, *shape)), jnp.ones((rows, self.text_length), bool),
                jnp.broadcast_to(learned_pooled, (rows, self.dim)),
            )  # fmt: skip
        if states is None or mask is None or pooled is None:
            if not (states is None and mask is None and pooled is None):
                raise ValueError("text_states, text_mask and text_pooled go together, and one of them is missing")
            if label is None:
                return none
            if not self.texts:
                raise ValueError("label was given to a network without fixed texts, which would ignore it")
            text = texts(label)
        else:
            check_input("label", label, False, "classes beside a text")
            if states.shape[1:] != (self.text_length, self.dim) or pooled.shape[-1] != self.dim:
                raise ValueError(
                    f"a text must have {self.text_length} states and an embedding of {self.dim} numbers, got states "
                    f"{list(states.shape[1:])} and an embedding of {pooled.shape[-1]}"
                )
            text = states, mask, pooled
        if null is None:
            return text
        pairs = zip(none, text, strict=True)
        return tuple(jnp.where(null.reshape(-1, *[1] * (x.ndim - 1)), n, x) for n, x in pairs)  # type: ignore[return-value]


def normalised(params: Any, embeddings: Float[Array, "b d"]) -> Float[Array, "b 1 1 1 d"]:
    """Embeddings in units of the statistics in the parameters of `Prior`, as it denoises them."""
    mean, std = (jax.lax.stop_gradient(params[name]) for name in ("mean", "std"))
    return ((embeddings - mean) / std)[:, None, None, None]


def denormalised(params: Any, z: Float[Array, "b 1 1 1 d"]) -> Float[Array, "b d"]:
    """The inverse of `normalised`."""
    return z[:, 0, 0, 0] * params["std"] + params["mean"]
