"""The paper's UCF101 recipe: 16 frames at 64 x 64, lambda = 0.5, unconditional.

    python -m vf.data.prepare ucf101 --source=UCF-101 --splits=ucfTrainTestlist --out=data/ucf101
    python -m vf.main --config=configs/ucf101.py --workdir=runs/ucf101

Training uses the 9,537 clips of the first official train list, as we read the paper; the 3,783 clips of its test list
are the validation set, and the training clips are the reference set of scores, as TATS has it. `--config.data.source`
names another folder of prepared data, or the folder of the AVI files, which are then decoded on the fly
(`--config.data.split_file=trainlist01.txt --config.data.validation_split_file=testlist01.txt` selects the official
split there; without them a share of the videos is the validation set). Data that was prepared without the official
lists has no test split: `--config.data.validation_split=` takes a share there. Variants, as `configs/ucf101.py:NAME`:

    smoke   the whole road at toy size, minutes on two CPU cores; its samples show nothing yet
    class   class-conditional, for classifier-free guidance
    adm     the base generator starts from OpenAI's ADM for ImageNet at 64 x 64 (296 M parameters)
    karlo   likewise from Karlo's unCLIP decoder (893 M), the nearest public network to the paper's

    prior_class, prior_unconditional   a prior, which draws the embeddings of context `embedding`, given a class or not

These two are for data with embeddings (`vf.data.prepare --embed=clip:FILE`), and the generators take what they draw by
`--config.sample.prior=runs/prior`. The variants adm and karlo read
weights/adm.safetensors or weights/karlo.safetensors (`--config.base.pretrained=FILE` names another),
which `python -m vf.pretrained.convert` makes of the public files. `--config.model.condition=label` conditions either on
the classes; `--config.model.context=embedding` ties frames as the paper does, by an embedding in the records.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(variant: str = "") -> ConfigDict:
    config = base.get_config()
    config.data.source = "data/ucf101"
    config.data.validation_split = "test"
    config.model.context = "base_frame"
    config.train.batch_size = 64
    config.eval.clips = 2048
    variants = {"smoke": base.smoke, "class": labelled, "adm": adm, "karlo": karlo}
    variants |= {"prior_unconditional": prior_unconditional, "prior_class": prior_class}
    return base.vary(config, variant, variants)


def labelled(config: ConfigDict) -> None:
    """Class-conditional."""
    config.model.condition = "label"
    config.sample.guidance_scale = 2.0


def adm(config: ConfigDict) -> None:
    """A pretrained base, fine-tuned gently beside a residual generator of a quarter of its size (74 M)."""
    pretrained(config, "weights/adm.safetensors")
    config.residual.net = base.network(width=128, width_mult=(1, 2, 2, 3), num_res_blocks=2, **MIXING)


def karlo(config: ConfigDict) -> None:
    """The same with the larger base and a residual generator of 209 M; activations are recomputed to save memory."""
    pretrained(config, "weights/karlo.safetensors")
    config.residual.net = base.network(width=192, width_mult=(1, 2, 3, 3), num_res_blocks=2, **MIXING)
    config.model.remat = "blocks"


def prior_unconditional(config: ConfigDict) -> None:
    """A prior of 50 M parameters; the paper's is that of DALL-E 2, 1 B, trained on texts."""
    base.prior(config, width=768, depth=6, heads=12)
    config.train.batch_size = 256
    config.train.steps = 50_000
    config.train.lr_prior = 1e-4
    config.train.sample_every = 5000
    config.sample.count = 2048
    config.sample.batch_size = 512
    config.eval.batch_size = 256


def prior_class(config: ConfigDict) -> None:
    """The same given the class."""
    prior_unconditional(config)
    config.model.condition = "label"
    config.sample.guidance_scale = 4.0  # Karlo's


MIXING = {"temporal": ("conv", "attention")}


def pretrained(config: ConfigDict, file: str) -> None:
    """Settings of both pretrained variants, whose base generator starts from `file`.

    The public networks predict eps under a cosine schedule. The paper gives neither the learning rates ("small" for
    the base) nor the precision.
    """
    config.base.pretrained = file
    config.noise.schedule = "cosine"
    config.noise.steps = 1000
    config.base.prediction = config.residual.prediction = "eps"
    config.train.lr_base = 1e-5
    config.train.lr_residual = 1e-4
    config.model.dtype = "bfloat16"
