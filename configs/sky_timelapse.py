"""Sky Time-lapse, unconditional: 16 neighbouring frames at 64 x 64 (the paper adds super-resolution to 128).

    python -m vf.data.prepare sky_timelapse --source=DIR --out=data/sky_timelapse --min-frames=16
    python -m vf.main --config=configs/sky_timelapse.py --workdir=runs/sky_timelapse

DIR holds `sky_train` and `sky_test` (MDGAN's release) or `train` and `test`, folders of frames below. The test split is
the validation set; the training clips are the reference set of scores, as in StyleGAN-V (DIGAN's is the test split:
`--config.eval.reference_split=test`).
Variants, as `configs/sky_timelapse.py:NAME`:

    smoke   the whole road at toy size, minutes on two CPU cores; its samples show nothing yet
"""

from ml_collections import ConfigDict

from configs import base


def get_config(variant: str = "") -> ConfigDict:
    config = base.get_config()
    config.data.source = "data/sky_timelapse"
    config.data.validation_split = "test"
    config.data.flip = True  # a sky has no left
    config.model.context = "base_frame"
    config.eval.clips = 2048
    return base.vary(config, variant, {"smoke": base.smoke})
