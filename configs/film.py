"""Any folder of long videos, cut into shots: 8 frames of 32 x 32 at 12 frames a second, for two CPU cores.

    python -m vf.data.prepare folder --source=FILMS --out=data/film32 --size=32 --shots
    python -m vf.main --config=configs/film.py --workdir=runs/film

FILMS is a video file or a folder of them; ten minutes are enough to begin with. `--config.data.source` names another
folder of prepared data. Training takes about three quarters of an hour: eight times the FLOPs of the demo. The
validation set is the split `val` of the shots, which no step sees, though shots of one scene look alike
(docs/film.md). Expect clips that hold together from frame to frame, in the colours and settings of the film, with
blurred figures. Variants, as `configs/film.py:NAME`:

    smoke   the whole road at toy size, minutes on two CPU cores; its samples show nothing yet
    large   16 frames of 64 x 64 on one GPU, from data/film64 (prepared with --size=64). The planner counts 70 to 90 ms
            a step on an H100: half an hour for its 20,000 steps; `--config.train.steps=3000` takes some minutes
    adm     likewise, and the base generator starts from OpenAI's ADM for ImageNet at 64 x 64 (weights/adm.safetensors,
            which `python -m vf.pretrained.convert adm` makes): hours

`--config.model.context` is `base_frame` here; `none` are the bare equations, and `embedding` is the paper's tie, for
data that is prepared with `--embed=efficientnet`.
"""

from ml_collections import ConfigDict

from configs import base
from configs.ucf101 import adm as adm_base


def get_config(variant: str = "") -> ConfigDict:
    config = base.get_config()
    config.data.source = "data/film32"
    config.data.validation_split = "val"
    config.data.frames, config.data.size = 8, 32
    config.data.fps = 12.0  # a film's own 24 moves little in eight frames
    config.model.context = "base_frame"

    # Attention in the middle of the networks only: on a CPU it costs more time than its FLOPs say.
    small = {"width": 64, "width_mult": (1, 2), "num_res_blocks": 1, "attention": (), "head_dim": 32, "norm_groups": 8}
    config.base.net = base.network(**small, patch=4, dropout=0.0)
    config.residual.net = base.network(**small, patch=4, dropout=0.0, temporal=("conv", "attention"))
    from_scratch(config)

    train = config.train
    train.steps = 2800
    train.batch_size = 12
    train.lr_base = train.lr_residual = 2e-3
    train.b2 = 0.99
    train.warmup_steps = 100
    train.ema_decay = 0.997
    train.log_every = 50
    train.checkpoint_every = 700
    train.sample_every = 1400

    config.sample.count = 32
    config.sample.batch_size = 32
    config.eval.clips = 64
    config.eval.batch_size = 32
    config.mesh.cpu_devices = 2
    return base.vary(config, variant, {"smoke": smoke, "large": large, "adm": adm})


def smoke(config: ConfigDict) -> None:
    """Toy size, of any number of steps."""
    base.smoke(config)
    config.train.schedule = "constant"


def from_scratch(config: ConfigDict) -> None:
    """Settings of networks that have seen no other pictures, and are to show something soon."""
    config.base.images = 4  # it is not pretrained, so it needs more images than one of each clip
    # The networks predict the clean clip, and the loss is the error of v: pictures are whole much sooner than where eps
    # or v is predicted.
    config.base.prediction = config.residual.prediction = "x_0"
    config.base.loss = config.residual.loss = "v"
    config.train.schedule = "cosine"
    config.sample.solver = "dpm"
    config.sample.eta = 1.0


def larger_clips(config: ConfigDict) -> None:
    """16 frames of 64 x 64 for one GPU, whatever the networks."""
    config.data.source = "data/film64"
    config.data.frames, config.data.size = 16, 64
    config.model.dtype = "bfloat16"
    config.train.batch_size = 32
    config.train.steps = 20_000
    config.train.b2 = 0.999
    config.train.warmup_steps = 500
    config.train.ema_decay = 0.9995
    config.train.log_every = 100
    config.train.checkpoint_every = 2500
    config.train.sample_every = 10_000


def large(config: ConfigDict) -> None:
    """Networks of 79 M parameters together, from scratch."""
    larger_clips(config)
    shape = {"width_mult": (1, 2, 3), "num_res_blocks": 2, "attention": (4,), "head_dim": 32, "patch": 2}
    config.base.net = base.network(width=128, **shape)
    config.residual.net = base.network(width=96, **shape, temporal=("conv", "attention"))
    config.train.lr_base = config.train.lr_residual = 3e-4


def adm(config: ConfigDict) -> None:
    """A pretrained base, as `configs/ucf101.py:adm` has it: it needs neither more images nor another loss."""
    larger_clips(config)
    adm_base(config)
    config.base.images = 1
    config.base.loss = config.residual.loss = ""
    config.train.schedule = "constant"
    config.train.accumulate = 4
