"""TaiChi-HD, unconditional: 16 frames at 64 x 64, every fourth of the video, as TATS and others report it.

    python -m vf.data.prepare taichi_hd --source=DIR --out=data/taichi_hd --min-frames=61
    python -m vf.main --config=configs/taichi_hd.py --workdir=runs/taichi_hd

DIR holds `train` and `test`, with chunks as folders of PNG frames or as MP4 files. The test split is the validation
set; the training clips are the reference set of scores, as in StyleGAN-V (DIGAN's is the test split:
`--config.eval.reference_split=test`).
Variants, as `configs/taichi_hd.py:NAME`:

    smoke   the whole road at toy size, minutes on two CPU cores; its samples show nothing yet
"""

from ml_collections import ConfigDict

from configs import base


def get_config(variant: str = "") -> ConfigDict:
    config = base.get_config()
    config.data.source = "data/taichi_hd"
    config.data.validation_split = "test"
    config.data.stride = 4
    config.model.context = "base_frame"
    config.eval.clips = 2048
    return base.vary(config, variant, {"smoke": base.smoke})
