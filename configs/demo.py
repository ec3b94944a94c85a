"""The whole road on the embedded sprites: train, sample, evaluate, page, in eight to eleven minutes on two CPU cores.

make demo        (python -m vf.main --config=configs/demo.py --workdir=runs/demo)

The variant `prior` trains what draws the embeddings of `--config.model.context=embedding`, in minutes:

    python -m vf.main --config=configs/demo.py:prior --workdir=runs/prior
    python -m vf.main --config=configs/demo.py --workdir=runs/embedding --config.model.context=embedding
    python -m vf.main --config=configs/demo.py --workdir=runs/embedding --config.model.context=embedding --mode=sample \
        --config.sample.prior=runs/prior
"""

from ml_collections import ConfigDict

from configs import base


def get_config(variant: str = "") -> ConfigDict:
    config = base.get_config()
    config.data.frames = 8
    config.data.size = 16
    config.model.context = "base_frame"
    # Classes are colours and shapes. Given them, the networks learn in minutes; guidance only blurs the samples.
    config.model.condition = "label"
    config.model.condition_dropout = 0.0

    # Attention in the middle of the networks only: on a CPU it costs more time than its FLOPs say.
    small = {"num_res_blocks": 1, "attention": (), "head_dim": 16, "norm_groups": 8, "dropout": 0.0}
    config.base.net = base.network(width=64, width_mult=(1,), patch=4, **small)
    config.base.images = 4  # it is not pretrained, so it needs more images than one of each clip
    config.residual.net = base.network(width=64, width_mult=(1,), patch=4, temporal=("conv", "attention"), **small)
    config.residual.net.temporal_attention_at = (1,)  # over frames it is cheap, and motion gains
    # The networks predict the clean clip, and the loss is the error of v: after a few hundred steps samples have flat
    # backgrounds and one sprite, where predicting eps or v still gives noise.
    config.base.prediction = config.residual.prediction = "x_0"
    config.base.loss = config.residual.loss = "v"

    train = config.train
    train.steps = 2600
    train.batch_size = 12
    train.lr_base = train.lr_residual = 3e-3
    train.schedule = "cosine"
    train.warmup_steps = 50
    train.b2 = 0.99
    train.ema_decay = 0.995
    train.log_every = 20
    train.checkpoint_every = 1300
    train.sample_every = 1300

    config.sample.count = 72  # four of each class
    config.sample.batch_size = 72
    config.sample.solver = "dpm"
    config.sample.steps = 50
    config.sample.eta = 1.0  # fresh noise corrects earlier mistakes: smoother paths than with 0
    config.eval.clips = 128
    config.eval.batch_size = 32
    config.mesh.cpu_devices = 2
    return base.vary(config, variant, {"prior": prior})


def prior(config: ConfigDict) -> None:
    """A prior over the base frame's ideal factors, given the class, for `--config.model.context=embedding`."""
    base.prior(config, width=128, depth=3, heads=4)
    config.train.steps = 2000
    config.train.batch_size = 128
    config.train.lr_prior = 1e-3
    config.train.checkpoint_every = config.train.sample_every = 2000
    config.train.log_every = 100
    config.sample.count = config.sample.batch_size = 1800  # a hundred of each class
    config.eval.clips = 1800
    config.eval.batch_size = 450
