"""From a config to networks: sizes, precision, attention, and the fields that a converted file determines."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vf import files
from vf.config import texts
from vf.config.values import choose
from vf.data.pipeline import Source
from vf.models.videofusion import CONTEXTS
from vf.nets.unclip import Decoder
from vf.nets.unet import REMAT, UNet
from vf.pretrained import base as pretrained
from vf.pretrained import prior as pretrained_prior
from vf.training import sharding
from vf.types import UserError, naming_flags

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
ATTENTION = {name: name for name in ("auto", "xla", "cudnn")}


def network(config: ConfigDict, name: str, source: Source, mesh: Mesh | None = None, **changes: Any) -> nn.Module:
    """The U-Net of the fields `config.<name>.net`, conditioned as `config` says; `changes` are further fields of it.

    One that reads texts is conditioned as Karlo's decoder is.
    """
    fields: dict[str, Any] = config[name].net.to_dict()
    fields["temporal_attention_at"] = fields["temporal_attention_at"] or None
    fields |= computation(config, mesh) | changes
    dim = embedding_dim(config, source)
    if name in texts.readers(config):
        length, _, text_dim = texts.shape(config)
        given = config.text
        body = UNet(
            **fields, cond_dim=4 * fields["width"], cond_projection=False, context_dim=given.context_dim or text_dim
        )
        return Decoder(
            body, embedding=dim > 0, text=True, text_length=length, clip_dim=dim or text_dim, text_dim=text_dim,
            image_tokens=given.image_tokens, text_mean=True,
        )  # fmt: skip
    if labelled(config, source):
        fields |= {"num_classes": source.num_classes, "null_class": True}
    return UNet(**fields, cond_dim=dim)


def base_network(config: ConfigDict, source: Source, mesh: Mesh | None = None) -> nn.Module:
    """The base generator: that of the converted file where `base.pretrained` names one, else `base.net`."""
    file = pretrained_base(config)
    if file is None:
        return network(config, "base", source, mesh)
    file.check(config.noise.schedule, config.noise.steps, config.base.prediction)
    return file.network(
        class_names=source.class_names if labelled(config, source) else (),
        embedding_dim=embedding_dim(config, source), text_dim=texts.shape(config)[2], dropout=config.base.net.dropout,
        **computation(config, mesh),
    )  # fmt: skip


def pretrained_base(config: ConfigDict) -> pretrained.Base | None:
    """The file that `base.pretrained` names, None where it is empty. UserError for no converted generator of the kind
    that the run has."""
    families = (pretrained.SUPERRES,) if config.model.low_size else pretrained.FAMILIES
    with naming_flags({"weights": "--config.base.pretrained"}):
        return pretrained.open_base(files.path(config.base.pretrained), families) if config.base.pretrained else None


def resolved(config: ConfigDict, workdir: files.AnyPath, fresh: bool = True) -> ConfigDict:
    """A copy of `config` whose `base.net` has the fields that a converted file determines, if one is named.

    Where that file no longer exists, its header is read from the folder of the run, which keeps a copy of it.

    Args:
        fresh: whether `workdir` has no checkpoint.

    Raises UserError as `pretrained_base`, and for another file than the one that the run started from.
    """
    config = config.copy_and_resolve_references()
    if not config.base.pretrained:
        return config
    headers = [workdir / pretrained.HEADER]
    if config.init_from:
        headers += [files.path(config.init_from) / name for name in (pretrained.HEADER, "base.safetensors")]
    if not files.path(config.base.pretrained).exists() and (copies := [path for path in headers if path.is_file()]):
        logging.warning("%s has gone; the base network is built as %s says", config.base.pretrained, copies[0])
        config.base.pretrained = str(copies[0])
    file = pretrained_base(config)
    assert file is not None
    if not fresh and headers[0].is_file():
        first = pretrained.open_base(headers[0])
        if first.fingerprint != file.fingerprint:
            raise UserError(
                f"{file.path} is not what the run in {workdir} began with (fingerprint {file.fingerprint}, and it was "
                f"{first.fingerprint}): name that file, or another --workdir"
            )
    if (size := file.about.get("image_size", config.data.size)) != config.data.size:
        logging.warning("%s was trained on %d pixels, and data.size is %d", file.path, size, config.data.size)
    config.base.net.update(file.fields)
    return config


def labelled(config: ConfigDict, source: Source) -> bool:
    """Whether networks are conditioned on classes. Raises UserError where the clips have none."""
    wanted = choose("model.condition", config.model.condition, texts.CONDITIONS) == "label"
    if wanted and not source.num_classes:
        raise UserError(
            "model.condition is label, but the clips have none: arrange them as DIR/<Class>/<clip>, or take "
            "--config.model.condition=none"
        )
    return wanted


def embedding_dim(config: ConfigDict, source: Source) -> int:
    """Channels of the embedding of the clean base frame where the model uses it, else 0.

    Raises UserError where the model uses it and the records have none.
    """
    if choose("model.context", config.model.context, {c: c for c in CONTEXTS}) != "embedding":
        return 0
    dim: int = texts.embedding_dim(config) or getattr(source, "embedding_dim", 0)
    if not dim and (prior := named_prior(config)):
        dim = prior.dim
    if not dim:
        raise UserError(
            "model.context is embedding, but these records have no embedding of the base frame: "
            "take --config.model.context=base_frame, or data prepared with --embed=efficientnet"
        )
    return dim


def named_prior(config: ConfigDict) -> pretrained_prior.Header | None:
    """The prior that `sample.prior` names; None where it is empty. Raises UserError where there is none."""
    with naming_flags(dict.fromkeys(("trained", "weights"), "--config.sample.prior")):
        return pretrained_prior.open_prior(files.path(config.sample.prior)) if config.sample.prior else None


def param_dtype(config: ConfigDict) -> Any:
    """The dtype in which parameters are stored."""
    return choose("model.param_dtype", config.model.param_dtype, DTYPES)


def computation(config: ConfigDict, mesh: Mesh | None) -> dict[str, Any]:
    """Arguments of every network that say how it computes: dtype, rematerialisation, attention kernel, sharding."""
    given = config.model
    dtype = choose("model.dtype", given.dtype, DTYPES)
    remat = choose("model.remat", given.remat, {name: name for name in ("none", *REMAT)})
    fields = {"dtype": dtype, "remat": remat, "scan": given.scan}
    fields["attention_kernel"] = attention_kernel(choose("model.attention", given.attention, ATTENTION), dtype, mesh)
    return fields if mesh is None else fields | {"place": sharding.placing(mesh)}


def attention_kernel(wanted: str, dtype: Any, mesh: Mesh | None = None) -> str:
    """Name of the attention kernel for the mesh's devices (None: this machine's): "cudnn" or "xla".

    `wanted` "auto" gives cuDNN's fused kernel where it runs, and XLA's elsewhere. Raises UserError where `wanted` is
    "cudnn" and it does not run there.
    """
    if wanted == "xla":
        return wanted
    platform = mesh.devices.flat[0].platform if mesh is not None else jax.default_backend()
    reason = None
    if platform not in ("gpu", "cuda"):
        reason = f"it is a kernel of NVIDIA GPUs, and this is {platform}"
    elif dtype != jnp.bfloat16:
        reason = "it computes in bfloat16: set --config.model.dtype=bfloat16"
    else:
        try:
            _try_cudnn()
        except Exception as error:  # driver, library and compiler raise errors of many kinds
            reason = f"it does not run here ({str(error).splitlines()[0]:.200})"
            logging.warning("attention is XLA's own, not cuDNN's: %s", reason)
    if reason and wanted == "cudnn":
        raise UserError(f"model.attention is cudnn, but {reason}; or take --config.model.attention=auto")
    return "xla" if reason else "cudnn"


def _try_cudnn() -> None:
    """Runs cuDNN's attention and its gradient at the shapes of a small network; raises what jax raises."""
    x = jnp.zeros((2, 64, 2, 64), jnp.bfloat16)

    def total(x: jax.Array) -> jax.Array:
        return jax.nn.dot_product_attention(x, x, x, implementation="cudnn").astype(jnp.float32).sum()

    jax.block_until_ready(jax.jit(jax.grad(total))(x))
