"""Converts Karlo's super-resolution U-Nets (Lee et al. 2022) from and to its .ckpt and diffusers' folders
super_res_first and super_res_last.

There are two networks of one shape. `first` makes the first six of seven steps and `last` the last one. They read the
noised picture and, beside it, the low-resolution one enlarged (`vf.models.superres`); nothing in them attends. The
.ckpt holds both, as `model_first_steps` and `model_last_step`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vf.pretrained import adm, unet
from vf.pretrained.karlo import LICENCE
from vf.pretrained.safetensors_file import Lazy

FACTOR = 4  # from the side of the low pictures to that of the high ones
CHANNELS = 6  # three of the noised picture, three of the enlarged one
# What its config.json must have: it may differ from ADM's networks in attention and in how the step enters.
_REQUIRED = {
    name: value for name, value in adm.REQUIRED.items() if name not in ("add_attention", "resnet_time_scale_shift")
}


def canonical(
    arrays: Mapping[str, np.ndarray], config: Mapping[str, Any], assume: Mapping[str, Any]
) -> tuple[dict[str, Lazy], dict[str, Any]]:
    """As `adm.canonical`, of one of the two networks; `image_size` is that of the enlarged pictures.

    Raises ValueError where it is another network, or incomplete.
    """
    layout = unet.layout_of(arrays)
    if not layout:
        raise ValueError("its names are neither Karlo's (input_blocks.0.0.weight) nor diffusers' (down_blocks...)")
    unet.check_config(config, "UNet2DModel", _REQUIRED | {"class_embed_type": None})
    fields = unet.infer_fields(arrays, layout, upsampler=True)
    if fields["num_classes"] or fields["learned_variance"]:
        raise ValueError("it has classes or a learned variance, which Karlo's super-resolution has not")
    given = {"sample_size": 256, **config}
    if not fields["middle_attention"]:
        given["attention_head_dim"] = 64  # of layers over frames; what config.json says is of nothing
    about = adm.facts(fields, given, {"attention_order": "legacy", **assume})
    about |= {"layout": layout, "licence": LICENCE, "classes": []}
    table = unet.links(adm.net(about), layout, CHANNELS)
    return unet.convert(arrays, table), about | unet.dtypes(arrays, table)


def original(arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> dict[str, Lazy]:
    """{name in Karlo's code of one network: tensor}. Raises ValueError as `adm.openai`."""
    unet.check_openai(about)
    return unet.export_arrays(arrays, unet.links(adm.net(about), "openai", CHANNELS), about)


def diffusers(arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> dict[str, tuple[dict[str, Lazy], dict]]:
    """As `adm.diffusers`, of the folder super_res_first or super_res_last and the scheduler of both."""
    there = unet.export_arrays(arrays, unet.links(adm.net(about), "diffusers", CHANNELS), about)
    kinds = ("AttnDownBlock2D", "ResnetDownsampleBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D")
    fields = about["network"]
    config = unet.diffusers_config(about, kinds) | {
        "_class_name": "UNet2DModel", "in_channels": CHANNELS, "add_attention": fields["middle_attention"],
        "resnet_time_scale_shift": "scale_shift" if fields["scale_shift"] else "default",
        "attn_norm_num_groups": fields["norm_groups"], "downsample_type": "resnet", "upsample_type": "resnet",
    }  # fmt: skip
    scheduler = unet.scheduler_config(about, "UnCLIPScheduler") | {"variance_type": "fixed_small_log"}
    return {"": (there, config), "scheduler": ({}, scheduler)}
