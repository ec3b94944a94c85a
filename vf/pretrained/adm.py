"""Converts ADM's image networks (Dhariwal & Nichol 2021) from and to guided-diffusion's .pt files and diffusers'
UNet2DModel folders.

Some settings cannot be inferred from arrays. They are read from diffusers' files where there are any; otherwise:

    heads          64 channels each                                         config.json
    their order    `new` at 64 pixels, `legacy` in the larger networks      (diffusers stores q, k and v separately)
    groups         32                                                       config.json
    schedule       cosine at 64 pixels, linear in the larger networks       scheduler_config.json
    prediction     eps                                                      scheduler_config.json

Source: guided-diffusion's README (flags of every published network) and unet.py.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vf.nets.unet import UNet
from vf.pretrained import unet
from vf.pretrained.safetensors_file import Lazy

LICENCE = "MIT (OpenAI)"
# Values that a config.json of diffusers must have, where it has these fields, for the network to be of this kind.
REQUIRED: dict[str, Any] = {
    "act_fn": "silu", "flip_sin_to_cos": True, "freq_shift": 0, "center_input_sample": False, "norm_eps": 1e-5,
    "time_embedding_type": "positional", "resnet_time_scale_shift": "scale_shift", "mid_block_scale_factor": 1,
    "time_embedding_dim": None, "add_attention": True,
}  # fmt: skip
# Fields of the run's U-Net that the file determines. UPSAMPLER has those in which only upsamplers differ.
FIELDS = (
    "width", "width_mult", "num_res_blocks", "attention", "head_dim", "attention_order", "learned_variance",
    "norm_groups", "patch",
)  # fmt: skip
UPSAMPLER = ("middle_attention", "scale_shift")


def net(about: Mapping[str, Any], **changes: Any) -> UNet:
    """The network of a converted file with the facts `about`; `changes` are further fields of `UNet`."""
    fields = dict(about["network"])
    return UNet(
        **fields | {"width_mult": tuple(fields["width_mult"]), "attention": tuple(fields["attention"])} | changes
    )


def canonical(
    arrays: Mapping[str, np.ndarray], config: Mapping[str, Any], assume: Mapping[str, Any]
) -> tuple[dict[str, Lazy], dict[str, Any]]:
    """(our arrays, which are made one at a time; facts `about` them).

    `about` has `layout`, `network` (fields of `UNet`), `image_size`, `schedule` {name, steps}, `prediction`, `dtype`,
    `other_dtypes`, `classes` (names of the rows of its table of classes, where they are known) and `licence`.

    Args:
        arrays: arrays of one file, by its names.
        config: fields of diffusers' config.json and scheduler_config.json; {} for other files.
        assume: values for settings that cannot be inferred: head_dim, attention_order, norm_groups, schedule, steps,
            prediction, image_size.

    Raises:
        ValueError: it is another network.
    """
    layout = unet.layout_of(arrays)
    if not layout:
        raise ValueError(
            "its names are neither guided-diffusion's (input_blocks.0.0.weight) nor diffusers' (down_blocks...)"
        )
    if any(".encoder_kv." in name or ".add_k_proj." in name for name in arrays):
        raise ValueError("its attention reads context, as Karlo's decoder does: convert it as karlo-decoder")
    unet.check_config(config, "UNet2DModel", REQUIRED | {"class_embed_type": None})
    fields = unet.infer_fields(arrays, layout)
    about = facts(fields, config, assume) | {"layout": layout, "licence": LICENCE, "classes": []}
    table = unet.links(net(about), layout)
    return unet.convert(arrays, table), about | unet.dtypes(arrays, table)


def facts(fields: Mapping[str, Any], config: Mapping[str, Any], assume: Mapping[str, Any]) -> dict[str, Any]:
    """`network`, `image_size`, `schedule` and `prediction`, from `fields`, diffusers' files, and what is assumed.

    What is assumed takes precedence over diffusers' files, and these over the defaults of the published networks.
    Raises ValueError for values out of range, and for networks that we do not have.
    """
    unet.check_schedule(config)
    small = len(fields["width_mult"]) <= 4
    if fields["width_mult"] == (1, 1, 2, 3, 4) and "attention_head_dim" not in config and "head_dim" not in assume:
        raise ValueError(
            "ADM at 128 pixels has 4 heads at every width, where the network here has heads of one size: "
            "convert the network of 64 or 256 pixels"
        )
    known = {
        "head_dim": config.get("attention_head_dim", 64), "norm_groups": config.get("norm_num_groups", 32),
        "attention_order": "new" if small else "legacy", "image_size": config.get("sample_size", 64 if small else 256),
        "schedule": unet.translate("beta_schedule", config.get("beta_schedule"), unet.SCHEDULES)
        or ("cosine" if small else "linear"),
        "prediction": unet.translate("prediction_type", config.get("prediction_type"), unet.PREDICTIONS) or "eps",
        "steps": config.get("num_train_timesteps") or 1000,
    } | dict(assume)  # fmt: skip
    for name in ("head_dim", "norm_groups", "image_size", "steps"):
        if type(known[name]) is not int or known[name] < 1:
            raise ValueError(f"{name} should be a positive number, and is {known[name]!r}")
    settled = {name: known[name] for name in ("head_dim", "norm_groups", "attention_order")}
    network = {**fields, **settled, "patch": 1}
    return {
        "network": network, "image_size": known["image_size"], "prediction": known["prediction"],
        "schedule": {"name": known["schedule"], "steps": known["steps"]},
    }  # fmt: skip


def openai(arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> dict[str, Lazy]:
    """{name in guided-diffusion's code: tensor}, in the dtypes of the source.

    Raises:
        ValueError: that code has no such network.
    """
    unet.check_openai(about)
    return unet.export_arrays(arrays, unet.links(net(about), "openai"), about)


def diffusers(arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> dict[str, tuple[dict[str, Lazy], dict]]:
    """{folder below the output's: (tensors, config.json)} for diffusers; the scheduler's has no tensors."""
    arrays_there = unet.export_arrays(arrays, unet.links(net(about), "diffusers"), about)
    kinds = ("AttnDownBlock2D", "ResnetDownsampleBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D")
    fields = about["network"]
    config = unet.diffusers_config(about, kinds) | {
        "_class_name": "UNet2DModel", "num_class_embeds": fields["num_classes"] or None,
        "attn_norm_num_groups": fields["norm_groups"], "downsample_type": "resnet", "upsample_type": "resnet",
    }  # fmt: skip
    return {"": (arrays_there, config), "scheduler": ({}, unet.scheduler_config(about, "DDPMScheduler"))}
