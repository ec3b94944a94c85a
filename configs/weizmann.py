"""Weizmann Action, for pictures of what base and residual noise control: 16 frames at 64 x 64, all ten actions.

    python -m vf.data.prepare weizmann --source=DIR --out=data/weizmann --min-frames=16
    python -m vf.main --config=configs/weizmann.py --workdir=runs/weizmann

DIR holds `<person>_<action>.avi`, flat or in folders of actions. There is no official split: about a tenth of the 93
clips, chosen by the hash of their names, are the validation set (11 where DIR is flat), and the others train.
Variants, as `configs/weizmann.py:NAME`:

    smoke   the whole road at toy size, minutes on two CPU cores; its samples show nothing yet
"""

from ml_collections import ConfigDict

from configs import base


def get_config(variant: str = "") -> ConfigDict:
    config = base.get_config()
    config.data.source = "data/weizmann"
    config.model.context = "base_frame"
    config.data.validation_share = 0.1
    config.eval.clips = 80
    return base.vary(config, variant, {"smoke": base.smoke})
