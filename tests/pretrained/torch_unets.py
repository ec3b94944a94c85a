"""The two public U-Nets as diffusers builds them, with random weights none of which is neutral."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from vf.pretrained.unet import links

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel  # noqa: E402

# Two levels, one with attention of two heads: everything that the full size has, once.
SMALL = {"width": 64, "mult": (1, 2), "blocks": 1, "attends": (False, True)}
FULL = {"mult": (1, 2, 3, 4), "blocks": 3, "attends": (False, True, True, True)}


def randomised(net, seed=0):
    """Weights of order 1 / sqrt(inputs), norms off 1 and 0, no layer at zero."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.ndim == 1 and "norm" in name and name.endswith("weight"):
                parameter.uniform_(0.5, 1.5, generator=draw)
            elif parameter.ndim == 1:
                parameter.normal_(0, 0.1, generator=draw)
            else:
                parameter.normal_(0, 1 / math.sqrt(parameter[0].numel()), generator=draw)
    return net.eval()


def adm(width, mult, blocks, attends, classes=10, learned_variance=True):
    """UNet2DModel in the configuration of ADM at 64 pixels, at any width."""
    return diffusers.UNet2DModel(
        sample_size=64, in_channels=3, out_channels=6 if learned_variance else 3, layers_per_block=blocks,
        num_class_embeds=classes or None, block_out_channels=[width * m for m in mult], attention_head_dim=64,
        down_block_types=["AttnDownBlock2D" if yes else "ResnetDownsampleBlock2D" for yes in attends],
        up_block_types=["AttnUpBlock2D" if yes else "ResnetUpsampleBlock2D" for yes in reversed(attends)],
        resnet_time_scale_shift="scale_shift", attn_norm_num_groups=32, upsample_type="resnet",
        downsample_type="resnet",
    )  # fmt: skip


def karlo(width, mult, blocks, attends, context=1536):
    """UNet2DConditionModel in the configuration of Karlo's decoder, at any width."""
    return diffusers.UNet2DConditionModel(
        sample_size=64, in_channels=3, out_channels=6, layers_per_block=blocks, cross_attention_dim=context,
        block_out_channels=[width * m for m in mult], attention_head_dim=64, class_embed_type="identity",
        down_block_types=["SimpleCrossAttnDownBlock2D" if yes else "ResnetDownsampleBlock2D" for yes in attends],
        up_block_types=["SimpleCrossAttnUpBlock2D" if yes else "ResnetUpsampleBlock2D" for yes in reversed(attends)],
        mid_block_type="UNetMidBlock2DSimpleCrossAttn", resnet_time_scale_shift="scale_shift",
    )  # fmt: skip


def superres(width, mult, blocks):
    """UNet2DModel in the configuration of Karlo's super-resolution, at any width."""
    return diffusers.UNet2DModel(
        sample_size=256, layers_per_block=blocks, down_block_types=["ResnetDownsampleBlock2D"] * len(mult),
        up_block_types=["ResnetUpsampleBlock2D"] * len(mult), block_out_channels=[width * m for m in mult],
        in_channels=6, out_channels=3, add_attention=False,
    )  # fmt: skip


def text_proj(width, context=1536, clip_dim=768):
    """What conditions Karlo's decoder."""
    return UnCLIPTextProjModel(time_embed_dim=4 * width, cross_attention_dim=context, clip_embeddings_dim=clip_dim)


def arrays(net, prefix=""):
    """{name: array} of a module."""
    return {prefix + name: tensor.detach().numpy() for name, tensor in net.state_dict().items()}


def outputs(net, wanted, *inputs, **options):
    """The result, and what each module in `wanted` gave on the way, channels last."""
    found, hooks = {}, []

    def keep(name):
        def hook(module, given, made):
            found[name] = channels_last(made)

        return hook

    modules = dict(net.named_modules())
    for name in wanted:
        hooks.append(modules[name].register_forward_hook(keep(name)))
    with torch.no_grad():
        result = channels_last(net(*inputs, **options).sample)
    for hook in hooks:
        hook.remove()
    return result, found


def channels_last(x):
    """b c h w -> b h w c, as NumPy."""
    return x.permute(0, 2, 3, 1).numpy() if x.ndim == 4 else x.numpy()


def channels_first(x):
    """b h w c -> b c h w, as PyTorch."""
    return torch.from_numpy(np.array(x)).permute(0, 3, 1, 2)


def relative(found, true):
    return float(np.abs(np.asarray(found) - true).max() / np.abs(true).max())


def made(lazy):
    return {name: array.make() for name, array in lazy.items()}


def blocks(net):
    """{scope of ours: module of theirs} of residual blocks and attention."""
    found = {}
    for path, link in links(net, "diffusers").items():
        for part in ("/res/norm_in/scale", "/attention/norm/scale", "_resample/norm_in/scale"):
            if path.endswith(part):
                found[path.removesuffix("/norm_in/scale").removesuffix("/norm/scale")] = link.names[0].rsplit(".", 2)[0]
    return found


def compare(module, params, theirs, z, t, options, their_options, unet, prefix=""):
    """Relative errors of every block of `unet`, part `prefix` of `module`, in order, and of the whole."""
    names = {prefix + scope: name for scope, name in blocks(unet).items()}
    true, inside = outputs(theirs, names.values(), channels_first(z[:, 0]), torch.from_numpy(t), **their_options)

    @jax.jit
    def run(params):
        out, seen = module.apply(
            {"params": params}, jnp.asarray(z), jnp.asarray(t), **options, capture_intermediates=True
        )
        return out, seen["intermediates"]

    out, seen = run(params)
    seen = flatten_dict(seen, sep="/")
    errors = {scope: relative(seen[f"{scope}/__call__"][0][:, 0], inside[name]) for scope, name in names.items()}
    return errors | {"all": relative(out[:, 0], true)}
