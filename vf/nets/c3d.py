"""C3D (Tran et al. 2015) fine-tuned on UCF-101, the network of the inception score of video: 16 frames -> 101 classes.

The layers are those of the Caffe model, as TGAN and TGANv2 ported it to Chainer (pfnet-research/tgan and tgan2; their
file is conv3d_deepnetA_ucf.npz). Details that ports get wrong: pools also use incomplete windows (7 x 7 pixels become
4 x 4, not 3 x 3), the values that enter fc6 are in the order C, T, H, W, and channels are in the order B, G, R.

The two codes prepare frames differently, and a third is public only as a compiled file:

    variant      resize                                   window of the mean volume (128 x 171)   frames
    tgan         cv2.INTER_CUBIC to 128 x 128, not        rows 8 ... 119, columns 29 ... 140      16
                 clipped, then its centre 112 x 112
    tganv2       bilinear, corners on corners, to         rows 8 ... 119, columns 8 ... 119       16
                 112 x 112
    styleganv    assumed to be TGANv2's                   assumed to be TGANv2's                  first 16

StyleGAN-V says that its c3d_ucf101.pt reproduces TGANv2's model "perfectly", and passes it whole frames of 0 ... 255 of
any size, so that the file resizes, subtracts the mean and applies the softmax. Its code is not published.

TGAN and TGANv2 pass x in [-1, 1] as 128 x + 128, and read videos as (u - 128) / 128, so that pixels of 0 ... 255 enter
unchanged. Here they always do; a generator's x = 1, which was passed there as 256, is stored as 255 first.
"""

import dataclasses
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float, UInt8

from vf.nets import resize
from vf.nets.feature_network import Network

SIZE = 112  # pixels of a side
FRAMES = 16
CLASSES = 101
WIDTH = 64
MEAN = (3, FRAMES, 128, 171)  # shape of the mean volume: B G R, frames, rows, columns
# Name, channels as a multiple of the width, and the pool after it.
CONVOLUTIONS: tuple[tuple[str, int, tuple[int, int, int] | None], ...] = (
    ("conv1a", 1, (1, 2, 2)),
    ("conv2a", 2, (2, 2, 2)),
    ("conv3a", 4, None),
    ("conv3b", 4, (2, 2, 2)),
    ("conv4a", 8, None),
    ("conv4b", 8, (2, 2, 2)),
    ("conv5a", 8, None),
    ("conv5b", 8, (2, 2, 2)),
)

Variant = Literal["tgan", "tganv2", "styleganv"]
Output = Literal["probabilities", "fc7"]


@dataclasses.dataclass(frozen=True)
class Preparation:
    """How a public code makes the network's input from a clip.

    Attributes:
        grid: how whole frames are resampled; the aspect ratio is not kept.
        size: side in pixels after resampling.
        corner: first row and column of the 112 x 112 pixels that are used of these.
        row: first row of the mean volume's window.
        column: first column of the mean volume's window.
        longer: whether clips may have more than 16 frames, of which the first 16 are used.
    """

    grid: resize.Grid
    size: int
    corner: int
    row: int
    column: int
    longer: bool = False


PREPARATIONS: dict[Variant, Preparation] = {
    "tgan": Preparation("opencv_cubic", 128, corner=8, row=8, column=21 + 8),
    "tganv2": Preparation("align_corners", SIZE, corner=0, row=8, column=8),
    "styleganv": Preparation("align_corners", SIZE, corner=0, row=8, column=8, longer=True),
}


class C3D(nn.Module):
    """Clips, B G R in 0 ... 255 minus the mean -> logits or features; for inference alone, without dropout.

    Attributes:
        width: channels of the first layer; fully connected layers have 64 times as many. 64 in the published network.
        classes: number of classes, 101 for the inception score.
        precision: precision of all products; HIGHEST is float32 on every platform.
    """

    width: int = WIDTH
    classes: int = CLASSES
    precision: Any = jax.lax.Precision.HIGHEST

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "b 16 112 112 3"], output: Literal["logits", "fc7"] = "logits"
    ) -> Float[jax.Array, "b d"]:
        """Logits [b classes], or the input of the last layer [b 64*width], which is >= 0.

        Raises ValueError for clips of another shape.
        """
        if x.shape[1:] != (FRAMES, SIZE, SIZE, 3):
            raise ValueError(f"C3D needs clips [b {FRAMES} {SIZE} {SIZE} 3], got {list(x.shape)}")

        def dense(name: str, features: int, x: jax.Array) -> jax.Array:
            return nn.Dense(features, precision=self.precision, name=name)(x)

        for name, multiple, pool in CONVOLUTIONS:
            x = nn.Conv(multiple * self.width, (3, 3, 3), precision=self.precision, name=name)(x)
            x = jax.nn.relu(x)
            if pool:
                # SAME adds nothing to an even side, and a last row to an odd one, as Chainer's cover_all and Caffe do.
                x = nn.max_pool(x, pool, pool, "SAME")
        x = jnp.moveaxis(x, -1, 1).reshape(len(x), -1)  # b (c t h w)
        for name in ("fc6", "fc7"):
            x = jax.nn.relu(dense(name, 64 * self.width, x))
        return x if output == "fc7" else dense("fc8", self.classes, x)


def prepare(
    clips: UInt8[jax.Array, "b f h w 3"], mean: Float[jax.Array, "3 16 128 171"], variant: Variant
) -> Float[jax.Array, "b 16 112 112 3"]:
    """The input of `C3D` for clips in R G B: resized, in B G R, minus the variant's window of the mean volume.

    Raises ValueError unless clips have 16 frames (`styleganv`: 16 or more) and `mean` has its shape.
    """
    preparation = PREPARATIONS[variant]
    frames, h, w = clips.shape[1:4]
    if frames < FRAMES or (frames > FRAMES and not preparation.longer):
        more = " or more" if preparation.longer else ""
        raise ValueError(f"C3D ({variant}) needs clips of {FRAMES} frames{more}, got {frames}")
    if mean.shape != MEAN:
        raise ValueError(f"expected a mean volume {list(MEAN)}, got {list(mean.shape)}")
    rows, columns = (
        r[preparation.corner : preparation.corner + SIZE]
        for r in resize.matrices(preparation.grid, "squash", h, w, preparation.size)
    )
    x = resize.apply(clips[:, :FRAMES].astype(jnp.float32), rows, columns)[..., ::-1]
    window = mean[:, :, preparation.row : preparation.row + SIZE, preparation.column : preparation.column + SIZE]
    return x - jnp.moveaxis(window, 0, -1)  # f h w c


def network(
    params: Any,
    fingerprint: str,
    *,
    variant: Variant = "tganv2",
    output: Output = "probabilities",
    exact: bool = True,
) -> Network:
    """C3D on clips of any size, for `vf.scores.features`.

    Its `apply` raises ValueError as `prepare`.

    Args:
        params: parameters of `C3D`, and the mean volume as `mean`, as the converter writes them. Their shapes determine
            the width and the number of classes.
        fingerprint: hash of the weights, for the protocol.
        variant: code whose preparation of frames is used; that of `styleganv` is assumed, see above.
        output: `probabilities` of the classes, for the inception score, or `fc7` (4096 numbers >= 0), for TGANv2's
            Fréchet distance.
        exact: whether to compute in float32 on every platform; False takes the platform's default precision.

    Raises:
        ValueError: the variant or output is unknown.
    """
    if variant not in PREPARATIONS or output not in get_args(Output):
        raise ValueError(
            f"expected a variant of {', '.join(PREPARATIONS)} and an output of {', '.join(get_args(Output))}, "
            f"got {variant} and {output}"
        )
    preparation = PREPARATIONS[variant]
    width, classes = params["conv1a"]["kernel"].shape[-1], params["fc8"]["kernel"].shape[-1]
    module = C3D(width, classes, precision=jax.lax.Precision.HIGHEST if exact else None)

    def apply(params: Any, clips: UInt8[jax.Array, "b f h w 3"]) -> Float[jax.Array, "b d"]:
        variables = {"params": {name: leaf for name, leaf in params.items() if name != "mean"}}
        x = prepare(clips, params["mean"], variant)
        y: Any = module.apply(variables, x, "fc7" if output == "fc7" else "logits")
        return y if output == "fc7" else jax.nn.softmax(y)

    output_text = f"probabilities of {classes} classes" if output == "probabilities" else "fc7 after its ReLU"
    size, corner, row, column = preparation.size, preparation.corner, preparation.row, preparation.column
    protocol = {
        "network": f"c3d, {output_text}", "weights": fingerprint, "variant": variant,
        "resize": f"{preparation.grid} to {size} x {size}, squash, pixels {corner} to {corner + SIZE}",
        "mean": f"rows {row} to {row + SIZE}, columns {column} to {column + SIZE}",
        "precision": "float32" if exact else "default",
    }  # fmt: skip
    return Network("c3d", classes if output == "probabilities" else 64 * width, params, apply, protocol)
