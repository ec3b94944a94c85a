"""DALL-E 2's decoder as Karlo has it: the U-Net of ADM, told an embedding of the image and a text.

The CLIP embedding of the image enters twice: added to the step embedding, and as a few context tokens in front of those
of the text. Without it there is a learned vector that stands for "no image"; without a text, the empty prompt.

Source: Ramesh et al., "Hierarchical text-conditional image generation with CLIP latents" (2022), section 2.1; Karlo
(Lee et al., 2022), whose public code settles the details.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int, Key, Num

from vf.nets.embed import expect
from vf.nets.unet import UNet


class Texts(nn.Module):
    """CLIP's states of fixed texts: kept among the parameters, so that a checkpoint is whole, and never trained.

    Attributes:
        rows: texts.
        length: tokens of each.
        dim: channels of a token's state and of a text's embedding.
    """

    rows: int
    length: int
    dim: int

    @nn.compact
    def __call__(
        self, row: Int[Array, " b"]
    ) -> tuple[Float[Array, "b length dim"], Bool[Array, "b length"], Float[Array, "b dim"]]:
        """States of each token, which of them count, and the embedding of the whole text."""
        zeros = nn.initializers.zeros_init()
        states = self.param("states", zeros, (self.rows, self.length, self.dim))
        mask = self.param("mask", zeros, (self.rows, self.length))
        pooled = self.param("pooled", zeros, (self.rows, self.dim))
        states, mask, pooled = (jax.lax.stop_gradient(x)[row] for x in (states, mask, pooled))
        return states, mask > 0.5, pooled


class Decoder(nn.Module):
    """The decoder; a drop-in for `UNet` on images, b 1 h w c.

    Attributes:
        unet: with `cond_dim` = 4 x its width and `cond_projection` False, and `context_dim` > 0.
        embedding: whether an embedding of the image is given; the learned vector stands in where not.
        texts: fixed texts that labels choose from, the last of them the empty prompt; 0 where there are none, and text
            tokens are masked.
        text_length: tokens of a text.
        clip_dim: channels of CLIP's embeddings and states.
        image_tokens: context tokens made of the image's embedding.
    """

    unet: UNet
    embedding: bool = False
    texts: int = 0
    text_length: int = 77
    clip_dim: int = 768
    image_tokens: int = 4

    @nn.compact
    def __call__(
        self,
        z: Float[Array, "b f h w c"],
        t: Num[Array, " b"],
        *,
        label: Int[Array, " b"] | None = None,
        cond: Float[Array, "b d"] | None = None,
        null: Bool[Array, " b"] | None = None,
        dropout_keys: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b f h w out"]:
        """Predict from noised images.

        Args:
            z, t, dropout_keys: as `UNet` has them.
            label: row of the texts; None for the empty prompt.
            cond: CLIP's embedding of each image, as it comes from CLIP; needed exactly where `embedding`.
            null: images whose embedding is replaced by the learned vector; their text is chosen by `label` alone.

        Raises:
            ValueError: an input that is missing or unused, or as `UNet` does.
        """
        rows, width = len(z), 4 * self.unet.width
        expect("cond", cond, self.embedding, "embedding")
        absent = self.param("null_embedding", nn.initializers.zeros_init(), (self.clip_dim,))
        if cond is None:
            image = jnp.broadcast_to(absent, (rows, self.clip_dim))
        else:
            if cond.shape[-1] != self.clip_dim:
                raise ValueError(f"cond must have clip_dim = {self.clip_dim} channels, got {cond.shape[-1]}")
            image = cond if null is None else jnp.where(null[:, None], absent, cond)

        if self.texts:
            row = jnp.full(rows, self.texts - 1) if label is None else label
            states, mask, pooled = Texts(self.texts, self.text_length, self.clip_dim, name="texts")(row)
        else:
            if label is not None:
                raise ValueError("label was given to a network without texts, which would ignore it")
            # One masked token of nothing, so that the layers behind it keep their parameters.
            states, mask = jnp.zeros((rows, 1, self.clip_dim)), jnp.zeros((rows, 1), bool)
            pooled = jnp.zeros((rows, self.clip_dim))

        cond = nn.Dense(width, name="image_to_step")(image) + nn.Dense(width, name="text_to_step")(pooled)
        # Channels of the projection are (feature, token), not (token, feature).
        tokens = nn.Dense(self.image_tokens * self.unet.context_dim, name="image_to_tokens")(image)
        tokens = rearrange(tokens, "b (d n) -> b n d", n=self.image_tokens)
        words = nn.Dense(self.unet.context_dim, name="text_to_tokens")(states)
        words = nn.LayerNorm(epsilon=1e-5, name="text_norm")(words)
        context = jnp.concatenate([tokens, words], axis=1)
        mask = jnp.pad(mask, ((0, 0), (self.image_tokens, 0)), constant_values=True)
        return self.unet(z, t, cond=cond, context=context, context_mask=mask, dropout_keys=dropout_keys)
