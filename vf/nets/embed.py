"""The conditions of a network besides pixels: step, class, vector, frame index, amplitude, summed into one embedding.

Source: ADM (Dhariwal & Nichol, "Diffusion models beat GANs on image synthesis", 2021, appendix). The frame
index and the amplitude, of the noise on a clip beside, are embedded in the same way as the step.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from vf.nets.initial import Dense, Embed


def sinusoid(position: Num[Array, "*n"], width: int, longest: float = 1e4) -> Float[Array, "*n width"]:
    """Cosines, then sines, of `position` at the frequencies `longest`^(-2i / width), i = 0..width/2 - 1.

    Positions are any real numbers (ADM feeds the step number 0..T-1 itself); the result is float32.

    Raises:
        ValueError: `width` is odd.
    """
    if width % 2:
        raise ValueError(f"a sinusoid needs an even width, got {width}")
    frequency = np.exp(-np.log(longest) * np.arange(width // 2) / (width // 2)).astype(np.float32)
    angle = jnp.asarray(position, jnp.float32)[..., None] * frequency
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


class PositionEmbed(nn.Module):
    """Sinusoid of `width` channels, then Dense, SiLU, Dense to `features` channels; in float32."""

    width: int
    features: int

    @nn.compact
    def __call__(self, position: Num[Array, "*n"]) -> Float[Array, "*n features"]:
        x = Dense(self.features, name="hidden")(sinusoid(position, self.width))
        return Dense(self.features, name="out")(nn.silu(x))


class Conditioning(nn.Module):
    """Sum of the embeddings of step, class label, vector, frame index and amplitude.

    Attributes:
        width: channels of the sinusoids; the embedding has 4 x `width`.
        num_classes: classes 0..num_classes-1; 0 for a network without labels.
        null_class: whether there is a label `num_classes`, "no class", for classifier-free guidance.
        cond_dim: channels of the vector `cond`; 0 for none.
        cond_projection: whether `cond` passes through a Dense; otherwise it is added unchanged.
        frame_embed: whether the frame index is embedded.
        amplitude_embed: whether an amplitude is embedded.
    """

    width: int
    num_classes: int = 0
    null_class: bool = False
    cond_dim: int = 0
    cond_projection: bool = True
    frame_embed: bool = False
    amplitude_embed: bool = False

    @nn.compact
    def __call__(
        self,
        t: Num[Array, "b *f"],
        label: Int[Array, " b"] | None,
        cond: Float[Array, "b d"] | None,
        frame: Int[Array, "*clip f"],
        amplitude: Float[Array, " b"] | None = None,
    ) -> Float[Array, "b #f e"]:
        """The embedding, float32, with one row for all frames unless the frame index is embedded, or each frame has a
        step of its own.

        Raises:
            ValueError: `label`, `cond` or `amplitude` is missing, or given to a network that would ignore it, or
                `cond` has the wrong number of channels.
        """
        features = 4 * self.width
        check_input("label", label, self.num_classes > 0, "num_classes")
        check_input("cond", cond, self.cond_dim > 0, "cond_dim")
        check_input("amplitude", amplitude, self.amplitude_embed, "amplitude_embed")
        x = PositionEmbed(self.width, features, name="time")(t.reshape(len(t), -1))  # b 1 e or b f e
        if label is not None:
            rows = self.num_classes + self.null_class
            x += Embed(rows, features, name="label")(label)[:, None]
        if cond is not None:
            if cond.shape[-1] != self.cond_dim:
                raise ValueError(f"cond must have cond_dim = {self.cond_dim} channels, got {cond.shape[-1]}")
            if not self.cond_projection and self.cond_dim != features:
                raise ValueError(f"unprojected, cond_dim must be 4 * width = {features}, got {self.cond_dim}")
            cond = cond.astype(jnp.float32)
            x += (Dense(features, name="cond")(cond) if self.cond_projection else cond)[:, None]
        if self.frame_embed:
            x += PositionEmbed(self.width, features, name="frame")(jnp.atleast_2d(frame))  # b f e
        if amplitude is not None:  # in thousandths, so that it has about the range of the step
            x += PositionEmbed(self.width, features, name="amplitude")(1000 * amplitude)[:, None]
        return x


def check_input(name: str, value: object, expected: bool, switch: str) -> None:
    """Raises ValueError where an input is missing, or would be silently ignored."""
    if expected and value is None:
        raise ValueError(f"{name} is missing: this network was built with {switch} > 0")
    if not expected and value is not None:
        raise ValueError(f"{name} was given to a network built with {switch} = 0, which would ignore it")
