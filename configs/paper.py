"""Networks of the paper's size on clips of its size: 2.1 B + 0.49 B parameters, 16 frames at 64 x 64.

    python -m vf.main --config=configs/paper.py --workdir=runs/plan --mode=plan --config.plan.target=v5e:16x16

The paper says "up to 2 billion" for the base generator, which is DALL-E 2's decoder, and others give 0.5 billion for
the residual generator; their shapes are not public. Ours are Karlo's, the nearest public network, made wider: multiples
of 128, the width of a TPU's matrix unit, and of 256, the width of later ones. Variants, as `configs/paper.py:NAME`:

    adm     widths as ADM and Karlo have them, multiples of 64 (448 with 4 blocks a level, 192 beside it): 1.97 + 0.44 B
"""

from ml_collections import ConfigDict

from configs import base

MIXING = {"temporal": ("conv", "attention")}


def get_config(variant: str = "") -> ConfigDict:
    config = base.get_config()
    config.data.source = "data/ucf101"
    config.data.validation_split = "test"
    config.model.context = "base_frame"
    config.model.dtype = "bfloat16"
    config.model.remat = "blocks"
    config.base.net = base.network(width=512)
    config.residual.net = base.network(width=256, num_res_blocks=2, **MIXING)
    config.train.batch_size = 256
    config.sample.batch_size = 256
    config.eval.clips = 2048
    config.eval.batch_size = 256
    return base.vary(config, variant, {"adm": adm})


def adm(config: ConfigDict) -> None:
    """About as many parameters, in widths that are no multiples of 128."""
    config.base.net = base.network(width=448, num_res_blocks=4)
    config.residual.net = base.network(width=192, num_res_blocks=4, **MIXING)
