"""Any folder of videos, GIFs or folders of frames: 16 frames at 64 x 64, at 8 frames a second whatever the source has.

    python -m vf.data.prepare folder --source=DIR --out=data/folder [--table=FILE.csv]
    python -m vf.main --config=configs/folder.py --workdir=runs/folder

`--config.data.source=DIR` names another folder, which may also be one of videos that are decoded on the fly. One video
in twenty, chosen by the hash of its name, belongs to the validation set (`data.validation_share`), unless a split or a
list is named: `--config.data.validation_split=test` (a split that folders or the table define), or
`--config.data.validation_split_file=FILE`.
Variants, as `configs/folder.py:NAME`:

    smoke   the whole road at toy size, minutes on two CPU cores; its samples show nothing yet
"""

from ml_collections import ConfigDict

from configs import base


def get_config(variant: str = "") -> ConfigDict:
    config = base.get_config()
    config.data.source = "data/folder"
    config.data.fps = 8.0
    config.model.context = "base_frame"
    config.eval.clips = 256
    return base.vary(config, variant, {"smoke": base.smoke})
