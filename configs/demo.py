"""The whole road on the embedded sprites: train, sample, evaluate, gallery, on two CPU cores.

make demo        (python -m vf.main --config=configs/demo.py --workdir=runs/demo)
"""

from ml_collections import ConfigDict

from configs import base


def get_config(variant: str = "") -> ConfigDict:
    config = base.get_config()
    config.data.frames = 8
    config.data.size = 16
    config.model.context = "base_frame"
    config.base.prediction = config.residual.prediction = "v"
    return base.vary(config, variant, {})
