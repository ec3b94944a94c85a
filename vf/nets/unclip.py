"""DALL-E 2's decoder in Karlo's version: the U-Net of ADM, conditioned on an embedding of the image and a text.

The CLIP embedding of the image enters twice: it is added to the step embedding, and becomes a few context tokens before
those of the text. Without it a learned vector stands for "no image"; without a text there is the empty prompt.

Source: Ramesh et al., "Hierarchical text-conditional image generation with CLIP latents" (2022), section 2.1; Karlo
(Lee et al., 2022), from whose public code the details are.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int, Key, Num

from vf.nets.embed import check_input
from vf.nets.initial import ZEROS, Dense, Initializer, LayerNorm
from vf.nets.unet import UNet


class Texts(nn.Module):
    """CLIP's states of fixed texts, which are parameters, so that checkpoints are complete, but are never trained.

    Attributes:
        rows: number of texts.
        length: number of tokens of each.
        dim: channels of a token's state and of a text's embedding.
    """

    rows: int
    length: int
    dim: int
    states_init: Initializer = ZEROS
    mask_init: Initializer = ZEROS
    pooled_init: Initializer = ZEROS

    @nn.compact
    def __call__(
        self, row: Int[Array, " b"]
    ) -> tuple[Float[Array, "b length dim"], Bool[Array, "b length"], Float[Array, "b dim"]]:
        """(states of each token, mask of those that are not padding, embedding of the whole text) of these rows."""
        states = self.param("states", self.states_init, (self.rows, self.length, self.dim))
        mask = self.param("mask", self.mask_init, (self.rows, self.length))
        pooled = self.param("pooled", self.pooled_init, (self.rows, self.dim))
        states, mask, pooled = (jax.lax.stop_gradient(x)[row] for x in (states, mask, pooled))
        return states, mask > 0.5, pooled


class Decoder(nn.Module):
    """The decoder, which can replace `UNet` on images, b 1 h w c, and on clips.

    Attributes:
        unet: the U-Net, with `cond_dim` = 4 x its width, `cond_projection` False, and `context_dim` > 0.
        embedding: whether an embedding of the image is given; otherwise the learned vector replaces it.
        texts: number of fixed texts, which labels select; the last one is the empty prompt. 0 for none, where text
            tokens are masked.
        text: whether each example comes with a text of its own. Without it there is the empty prompt, or where there
            are no fixed texts a learned vector in place of a text of one token.
        text_mean: whether the mean state of a text's tokens is added to the step embedding too, as in Imagen (Saharia
            et al. 2022): the embedding of the whole says what a picture can show, and nothing of motion.
        text_length: tokens of a text.
        clip_dim: channels of CLIP's embeddings and states.
        text_dim: channels of the states and embeddings of texts where they are others; 0 for `clip_dim`.
        image_tokens: number of context tokens made from the image's embedding.
    """

    unet: UNet
    embedding: bool = False
    texts: int = 0
    text: bool = False
    text_mean: bool = False
    text_length: int = 77
    clip_dim: int = 768
    text_dim: int = 0
    image_tokens: int = 4
    null_embedding_init: Initializer = ZEROS
    null_text_init: Initializer = ZEROS

    @nn.compact
    def __call__(
        self,
        z: Float[Array, "b f h w c"],
        t: Num[Array, " b"],
        *,
        label: Int[Array, " b"] | None = None,
        cond: Float[Array, "b d"] | None = None,
        null: Bool[Array, " b"] | None = None,
        text_states: Float[Array, "b n e"] | None = None,
        text_mask: Bool[Array, "b n"] | None = None,
        text_pooled: Float[Array, "b e"] | None = None,
        dropout_keys: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b f h w out"]:
        """Predicts from noised images.

        Args:
            z, t, dropout_keys: as for `UNet`.
            label: row of the texts; None for the empty prompt.
            cond: CLIP's embedding of each image, not normalised; needed exactly where `embedding`.
            null: which images have their embedding replaced by the learned vector, and a text of their own by that of
                none; `label` still selects theirs.
            text_states, text_mask, text_pooled: of the texts, as `Texts` gives them; needed exactly where `text`.

        Raises:
            ValueError: an input is missing or unused, or as `UNet`.
        """
        rows, width = len(z), 4 * self.unet.width
        check_input("cond", cond, self.embedding, "embedding")
        null_embedding = self.param("null_embedding", self.null_embedding_init, (self.clip_dim,))
        if cond is None:
            image = jnp.broadcast_to(null_embedding, (rows, self.clip_dim))
        else:
            if cond.shape[-1] != self.clip_dim:
                raise ValueError(f"cond must have clip_dim = {self.clip_dim} channels, got {cond.shape[-1]}")
            image = cond if null is None else jnp.where(null[:, None], null_embedding, cond)

        states, mask, pooled = self._without_text(rows, label)
        check_input("text_states", text_states, self.text, "text")
        if text_states is not None and text_mask is not None and text_pooled is not None:
            given = (text_states, text_mask, text_pooled)
            if null is None:
                states, mask, pooled = given
            else:
                beyond = ((0, 0), (0, text_states.shape[1] - states.shape[1]))
                none = (jnp.pad(states, (*beyond, (0, 0))), jnp.pad(mask, beyond), pooled)
                states, mask, pooled = (
                    jnp.where(null.reshape(-1, *[1] * (x.ndim - 1)), without, x)
                    for without, x in zip(none, given, strict=True)
                )

        cond = Dense(width, name="image_to_step")(image) + Dense(width, name="text_to_step")(pooled)
        if self.text_mean:
            count = jnp.maximum(mask.sum(1, keepdims=True), 1)
            cond += Dense(width, name="text_mean_to_step")((states * mask[..., None]).sum(1) / count)
        # Channels of the projection are (feature, token), not (token, feature).
        tokens = Dense(self.image_tokens * self.unet.context_dim, name="image_to_tokens")(image)
        tokens = rearrange(tokens, "b (d n) -> b n d", n=self.image_tokens)
        text_tokens = Dense(self.unet.context_dim, name="text_to_tokens")(states)
        text_tokens = LayerNorm(epsilon=1e-5, name="text_norm")(text_tokens)
        context = jnp.concatenate([tokens, text_tokens], axis=1)
        mask = jnp.pad(mask, ((0, 0), (self.image_tokens, 0)), constant_values=True)
        return self.unet(z, t, cond=cond, context=context, context_mask=mask, dropout_keys=dropout_keys)

    def _without_text(
        self, rows: int, label: Int[Array, " b"] | None
    ) -> tuple[Float[Array, "b n d"], Bool[Array, "b n"], Float[Array, "b d"]]:
        """States, mask and embedding of the texts that `label` selects, or of none."""
        if self.texts:
            row = jnp.full(rows, self.texts - 1) if label is None else label
            return Texts(self.texts, self.text_length, self.clip_dim, name="texts")(row)
        if label is not None:
            raise ValueError("label was given to a network without texts, which would ignore it")
        if self.text:
            dim = self.text_dim or self.clip_dim
            learned = jnp.broadcast_to(self.param("null_text", self.null_text_init, (dim,)), (rows, dim))
            return learned[:, None], jnp.ones((rows, 1), bool), learned
        # One masked token of zeros, so that the layers after it keep their parameters.
        zeros = jnp.zeros((rows, self.clip_dim))
        return zeros[:, None], jnp.zeros((rows, 1), bool), zeros
