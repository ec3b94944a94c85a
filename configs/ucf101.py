"""The paper's UCF101 recipe: 16 frames at 64 x 64, lambda = 0.5, unconditional.

    python -m vf.main --config=configs/ucf101.py --workdir=runs/ucf101 --config.data.source=DIR

DIR has UCF101's own layout, `<Class>/v_<Class>_g01_c01.avi`; `--config.data.split_file=trainlist01.txt` keeps the 9,537
training clips, which is what the paper is read to have used. Variants, as `configs/ucf101.py:NAME`:

    smoke   the whole road at toy size, minutes on two CPU cores; its samples show nothing yet
    class   class-conditional, for classifier-free guidance
"""

from ml_collections import ConfigDict

from configs import base


def get_config(variant: str = "") -> ConfigDict:
    config = base.get_config()
    config.data.source = "data/UCF-101"
    config.model.context = "base_frame"
    config.train.batch_size = 64
    config.eval.clips = 2048
    return base.vary(config, variant, {"smoke": smoke, "class": labelled})


def labelled(config: ConfigDict) -> None:
    """Class-conditional."""
    config.model.condition = "label"
    config.sample.guidance_scale = 2.0


def smoke(config: ConfigDict) -> None:
    """Everything that the recipe does, at a size that two cores finish."""
    # Compiling is most of the time at this size: few levels, attention in the middle only.
    small = {"width": 16, "width_mult": (1, 2), "num_res_blocks": 1, "attention": (), "head_dim": 16, "norm_groups": 8}
    config.base.net = base.network(**small, patch=4)
    config.residual.net = base.network(**small, patch=4, temporal=("conv", "attention"))
    config.base.prediction = config.residual.prediction = "v"
    config.train.steps = 120
    config.train.batch_size = 8
    config.train.lr_base = config.train.lr_residual = 1e-3
    config.train.warmup_steps = 20
    config.train.ema_decay = 0.98
    config.train.log_every = 10
    config.train.checkpoint_every = 30
    config.train.sample_every = 60
    config.sample.count = 8
    config.sample.batch_size = 8
    config.sample.steps = 20
    config.eval.clips = 16
    config.eval.batch_size = 8
