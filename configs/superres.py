"""Super-resolution of clips: one network that sees the low clip, enlarged, beside the noised one.

    python -m vf.data.prepare ucf101 --source=UCF-101 --splits=ucfTrainTestlist --out=data/ucf101_128 --size=128
    python -m vf.main --config=configs/superres.py --workdir=runs/superres

takes UCF101 from 64 x 64 to 128 x 128, from scratch, on a GPU or more. Its samples are validation clips, reduced and
taken up again, and `psnr` compares them with the clips themselves; `--config.sample.superres=runs/superres` takes the
samples of another run up. Variants, as `configs/superres.py:NAME`:

    demo    sprites from 16 x 16 to 32 x 32, minutes on two CPU cores: for samples of configs/demo.py
    karlo   UCF101 from 64 x 64 to 256 x 256: Karlo's network of the first steps (692 M), with layers over frames
    smoke   everything at toy size

`karlo` reads weights/karlo_sr.safetensors, which is made of the public file:

    python -m vf.pretrained.convert karlo-superres --source=karlo/super_res_first --out=weights/karlo_sr.safetensors
"""

from ml_collections import ConfigDict

from configs import base


def get_config(variant: str = "") -> ConfigDict:
    config = base.get_config()
    config.data.source = "data/ucf101_128"
    config.data.validation_split = "test"
    config.data.size = 128
    config.model.predictor = "one_network"
    config.model.low_size = 64
    config.model.low_noise = 0.1
    # Patches of 2, and attention over space in the coarsest level alone: detail is local.
    config.base.net = base.network(width=128, num_res_blocks=2, attention=(8,), patch=2, temporal=("conv", "attention"))
    config.base.net.temporal_attention_at = (4, 8)
    config.base.prediction = "x_0"
    config.base.loss = "v"
    config.model.dtype = "bfloat16"
    config.train.batch_size = 32
    config.train.lr_base = 1e-4
    config.sample.solver = "dpm"
    config.sample.steps = 10
    config.eval.clips = 2048
    return base.vary(config, variant, {"smoke": smoke, "demo": demo, "karlo": karlo})


def smoke(config: ConfigDict) -> None:
    """Toy size, from 32 pixels to 64."""
    base.smoke(config)
    config.data.source = "data/ucf101"
    config.data.size, config.model.low_size = 64, 32
    config.model.dtype = "float32"
    config.base.net.temporal = ("conv",)
    config.base.prediction = "x_0"
    config.sample.steps = 5


def demo(config: ConfigDict) -> None:
    """Sprites of eight frames, from the demo's size to twice that."""
    config.data.source = "sprites"
    config.data.validation_split = ""
    config.data.frames, config.data.size, config.model.low_size = 8, 32, 16
    config.model.dtype = "float32"
    config.base.net = base.network(
        width=64, width_mult=(1,), num_res_blocks=1, attention=(), middle_attention=False, head_dim=16, patch=4,
        temporal=("conv", "attention"), norm_groups=8, dropout=0.0,
    )  # fmt: skip
    config.base.net.temporal_attention_at = (1,)
    train = config.train
    train.steps = 1200
    train.batch_size = 8
    train.lr_base = 2e-3
    train.schedule = "cosine"
    train.warmup_steps = 50
    train.b2 = 0.99
    train.ema_decay = 0.995
    train.log_every = 20
    train.checkpoint_every = train.sample_every = 600
    config.sample.count = config.sample.batch_size = 72
    config.eval.clips = 128
    config.eval.batch_size = 32
    config.mesh.cpu_devices = 2


def karlo(config: ConfigDict) -> None:
    """Karlo's network, fine-tuned gently with layers over frames, which begin without effect."""
    config.data.source = "data/ucf101_256"
    config.data.size = 256
    config.base.pretrained = "weights/karlo_sr.safetensors"
    config.base.net = base.network(attention=(), temporal=("conv", "attention"))
    config.base.net.temporal_attention_at = (4, 8)
    config.noise.lam = (1.0,)  # one noise for all frames: what an image model needs for them to agree
    config.base.prediction = "eps"
    config.base.loss = ""
    config.train.lr_base = 3e-5
    config.model.remat = "blocks"
    config.sample.solver = "ddim"
    config.sample.steps = 7
    config.sample.eta = 1.0
    config.sample.batch_size = 4
    config.eval.batch_size = 4
