"""Text to video on the embedded sprites: a CLIP trained here, and generators that read captions.

make demo-text, or one after the other:

    python -m vf.main --config=configs/demo_text.py --workdir=runs/demo-text/clip --mode=clip
    python -m vf.main --config=configs/demo_text.py --workdir=runs/demo-text/video
    python -m vf.main --config=configs/demo_text.py --workdir=runs/demo-text/video --mode=sample \\
        --config.sample.prompts="a red triangle moves left over white"

A share of the contents is held out: no training clip shows them, and prompts of them are something new.
"""

from ml_collections import ConfigDict

from configs import base, demo


def get_config(variant: str = "") -> ConfigDict:
    config = demo.get_config()
    config.data.held_out = 0.15
    config.model.condition = "text"
    config.model.condition_dropout = 0.1
    config.text.encoder = "runs/demo-text/clip/clip.safetensors"
    config.text.tokenizer = "runs/demo-text/clip/tokenizer.json"
    return base.vary(config, variant, {})
