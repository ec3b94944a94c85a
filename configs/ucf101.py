"""The paper's UCF101 recipe: 16 frames at 64 x 64, lambda = 0.5, unconditional.

    python -m vf.data.prepare ucf101 --source=UCF-101 --splits=ucfTrainTestlist --out=data/ucf101
    python -m vf.main --config=configs/ucf101.py --workdir=runs/ucf101

The 9,537 training clips of the first official split are what the paper is read to have used. Another place, or the AVI
files themselves in their own layout, decoded on the fly, are named by `--config.data.source=DIR`
(`--config.data.split_file=trainlist01.txt` then keeps the training clips). Variants, as `configs/ucf101.py:NAME`:

    smoke   the whole road at toy size, minutes on two CPU cores; its samples show nothing yet
    class   class-conditional, for classifier-free guidance
"""

from ml_collections import ConfigDict

from configs import base


def get_config(variant: str = "") -> ConfigDict:
    config = base.get_config()
    config.data.source = "data/ucf101"
    config.model.context = "base_frame"
    config.train.batch_size = 64
    config.eval.clips = 2048
    return base.vary(config, variant, {"smoke": base.smoke, "class": labelled})


def labelled(config: ConfigDict) -> None:
    """Class-conditional."""
    config.model.condition = "label"
    config.sample.guidance_scale = 2.0
