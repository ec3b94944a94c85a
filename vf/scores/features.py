"""Features of clips by any network: in batches of one size over all devices, decoded ahead, cached on disk.

A set of clips is anything with a length, a shape and slices, such as an array, or a set that is decoded when it is
sliced. Every clip is read once, and a digest of its pixels and their range are recorded for the warnings below.
"""

import dataclasses
import hashlib
import json
import logging
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import jax
import numpy as np
import safetensors
from jax.experimental import multihost_utils
from jaxtyping import UInt8
from safetensors.numpy import save_file

from vf import files
from vf.nets.feature_network import Network
from vf.run.progress import Progress
from vf.video import replacing


class Clips(Protocol):
    """A set of clips, u8 [n f h w 3], which may be decoded as it is sliced. Arrays are such sets."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes (n, f, h, w, 3)."""

    def __len__(self) -> int:
        """Number of clips, n."""

    def __getitem__(self, rows: slice, /) -> UInt8[np.ndarray, "k f h w 3"]:
        """The clips of a slice, in order."""


@dataclasses.dataclass(frozen=True)
class Features:
    """Features of a set of clips, with facts of its pixels.

    Attributes:
        values: f32 [n d], or [n f d] for a network of single frames.
        digests: hash of each clip's pixels, 16 hex digits.
        lowest, highest: extreme values of each clip's pixels, u8 [n].
    """

    values: np.ndarray
    digests: tuple[str, ...]
    lowest: np.ndarray
    highest: np.ndarray

    def __len__(self) -> int:
        return len(self.values)


def fingerprint(clips: Clips, batch_size: int = 16) -> str:
    """12 hex digits of the SHA-256 of all pixels and their shape, or the set's own `fingerprint` where it has one."""
    if isinstance(known := getattr(clips, "fingerprint", None), str):
        return known  # saves decoding all clips
    digest = hashlib.sha256(str(list(clips.shape)).encode())
    for first in range(0, len(clips), batch_size):
        digest.update(np.ascontiguousarray(clips[first : first + batch_size]).data)
    return digest.hexdigest()[:12]


def extract(network: Network, clips: Clips, *, batch_size: int = 16, cache: Path | None = None) -> Features:
    """Features of every clip, in order; read from `cache` where it has those of the same clips by the same network.

    Args:
        network: the network.
        clips: at least one clip.
        batch_size: clips per batch, over all devices of this host; rounded up to a multiple of their number. It
            changes features by rounding only. The last batch is filled with black clips, whose features are dropped.
        cache: folder of the cache; None caches nothing. The name of a file in it is a hash of network, protocol and
            pixels, so that outdated features are never read.

    Raises:
        ValueError: there are no clips, they have another dtype or shape or cannot be read by the network, or features
            are not finite.
    """
    if len(clips.shape) != 5 or clips.shape[-1] != 3 or not len(clips):
        raise ValueError(f"expected one clip or more, [n f h w 3], got {list(clips.shape)}")
    if (dtype := getattr(clips, "dtype", np.dtype(np.uint8))) != np.uint8:
        raise ValueError(f"expected pixels as uint8, got {dtype}: convert [-1, 1] by (127.5 x + 128) first")
    hosts, host = jax.process_count(), jax.process_index()
    path = None
    if cache is not None:
        facts = {"network": network.name, "protocol": network.protocol, "clips": fingerprint(clips), "version": 1}
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
        path = cache / f"{network.name}-{key}.safetensors"
        cached = _read(path)
        is_cached = cached is not None
        if hosts > 1:  # all hosts read the file or none does, since those that compute wait for every host's share
            is_cached = bool(np.all(multihost_utils.process_allgather(np.array(is_cached))))
        if cached is not None and is_cached:
            return cached
    # Each host takes one contiguous block, and decodes only that.
    share = -(-len(clips) // hosts)
    rows = range(min(host * share, len(clips)), min((host + 1) * share, len(clips)))
    features = _run(network, clips, rows, batch_size)
    if hosts > 1:
        features = _gather(features, share, len(clips))
    if not np.isfinite(features.values).all():
        bad = np.flatnonzero(~np.isfinite(features.values.reshape(len(features), -1)).all(1))
        raise ValueError(f"{len(bad)} clips have features with NaN or infinities (the first is clip {bad[0]})")
    if path is not None and host == 0:
        _write(path, features)
    return features


def _run(network: Network, clips: Clips, rows: range, batch_size: int) -> Features:
    count = len(jax.local_devices())
    batch_size = -(-min(batch_size, max(len(rows), 1)) // count) * count
    per_clip = clips.shape[1] if network.protocol.get("rows") == "frames" else 0
    bar = Progress(len(rows), stream=sys.stderr, name=f"features of {network.name}: clip", unit="clips", patient=True)
    parts: list[np.ndarray] = []
    digests: list[str] = []
    lowest, highest = np.zeros(len(rows), np.uint8), np.zeros(len(rows), np.uint8)
    pending: list[tuple[jax.Array, int]] = []  # the device works on one batch while the next one is decoded

    def collect() -> None:
        values, n = pending.pop(0)
        array = np.asarray(values)
        parts.append(array.reshape(-1, per_clip, network.dim)[:n] if per_clip else array[:n])

    for batch in _batches(clips, rows, batch_size):
        at = len(digests)
        digests += [hashlib.sha256(np.ascontiguousarray(clip).data).hexdigest()[:16] for clip in batch]
        lowest[at : len(digests)] = batch.min((1, 2, 3, 4))
        highest[at : len(digests)] = batch.max((1, 2, 3, 4))
        n = len(batch)
        full = (
            np.concatenate([batch, np.zeros((batch_size - n, *batch.shape[1:]), np.uint8)]) if n < batch_size else batch
        )
        pending.append((network.compiled(network.placed, full), n))
        if len(pending) > 1:
            collect()
        if jax.process_index() == 0:
            bar.update(len(digests))
    while pending:
        collect()
    empty = (0, per_clip, network.dim) if per_clip else (0, network.dim)
    return Features(np.concatenate([np.zeros(empty, np.float32), *parts]), tuple(digests), lowest, highest)


def _batches(clips: Clips, rows: range, batch_size: int) -> Iterator[np.ndarray]:
    """Yields batches; the next one is decoded while a batch is in use."""
    slices = [slice(first, min(first + batch_size, rows.stop)) for first in range(rows.start, rows.stop, batch_size)]
    with ThreadPoolExecutor(1, thread_name_prefix="clips") as pool:
        pending = [pool.submit(clips.__getitem__, s) for s in slices[:1]]
        for k in range(len(slices)):
            pending += [pool.submit(clips.__getitem__, s) for s in slices[k + 1 : k + 2]]
            yield np.asarray(pending.pop(0).result())


def _gather(features: Features, share: int, count: int) -> Features:
    """The features of all hosts, on every host."""

    def everywhere(x: np.ndarray) -> np.ndarray:
        padded = np.concatenate([x, np.zeros((share - len(x), *x.shape[1:]), x.dtype)])
        return np.asarray(multihost_utils.process_allgather(padded, tiled=True))[:count]

    numbers = np.array([[int(d[:8], 16), int(d[8:], 16)] for d in features.digests], np.uint32).reshape(-1, 2)
    digests = tuple(f"{a:08x}{b:08x}" for a, b in everywhere(numbers).tolist())
    return Features(everywhere(features.values), digests, everywhere(features.lowest), everywhere(features.highest))


def _read(path: Path) -> Features | None:
    """The features in a file; None where there is no such file, or it is damaged and must be written again."""
    if not path.is_file():
        return None
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            header = file.metadata() or {}
        features = Features(
            arrays["values"], tuple(json.loads(header["digests"])), arrays["lowest"], arrays["highest"]
        )  # fmt: skip
        if header["content"] != _content_hash(path, features):
            raise ValueError("it holds other values than were written")
    except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
        logging.warning("%s is damaged (%s) and will be made again", path, error)
        return None
    return features


def _content_hash(path: Path, features: Features) -> str:
    """A hash of a file's content and name. safetensors has none, so that it could not detect a changed bit or a file
    that was renamed."""
    digest = hashlib.sha256(" ".join([path.name, *features.digests]).encode())
    for array in (features.values, features.lowest, features.highest):
        digest.update(f"{array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _write(path: Path, features: Features) -> None:
    arrays = {"values": features.values, "lowest": features.lowest, "highest": features.highest}
    header = {"digests": json.dumps(features.digests), "content": _content_hash(path, features)}
    try:
        with replacing(path) as temporary:
            save_file(arrays, temporary, metadata=header)
    except (OSError, safetensors.SafetensorError) as error:
        logging.warning("features are not kept: %s cannot be written (%s)", path, error)


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/vf/features`, or the same in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or files.home() / ".cache") / "vf" / "features"


def pixel_warnings(name: str, features: Features) -> list[str]:
    """What is suspicious about the pixels of one set, in one sentence each. `name` is "real" or "generated".

    Raises ValueError for pixels in [0, 1].
    """
    messages = []
    if features.highest.max() == 1:
        raise ValueError(
            f"no pixel of the {name} clips exceeds 1: values of [0, 1] were stored as uint8; multiply by 255 first"
        )
    if black := int((features.highest == 0).sum()):
        messages.append(f"{black} of {len(features)} {name} clips are black throughout")
        if black == len(features):
            messages[-1] += " (values of [0, 1] that were cast to uint8 look so)"
    if still := int((features.lowest == features.highest).sum()) - black:
        messages.append(f"{still} of {len(features)} {name} clips are of one colour throughout")
    return messages


def count_warnings(real: int, generated: int) -> list[str]:
    """What makes scores of so many clips doubtful, in one sentence each."""
    messages = []
    if 1 in (real, generated):
        messages.append("a score of one clip says nothing about a set")
    if real != generated:
        messages.append(f"{real} real and {generated} generated clips: compare numbers of equal counts only")
    return messages


def distance_warnings(
    real: Features, generated: Features, dim: int | None, sizes: tuple[int, int] | None = None
) -> list[str]:
    """What makes a distance of two sets doubtful, in one sentence each.

    Args:
        real, generated: features of the sets.
        dim: size of a feature vector; None where the distance fits no covariance.
        sizes: number of clips of each set that are compared at a time; None stands for all.

    Raises ValueError where the distance would mean nothing: for fewer than 2 clips, or pixels in [0, 1].
    """
    messages = []
    sizes = sizes or (len(real), len(generated))
    for name, features, n in zip(("real", "generated"), (real, generated), sizes, strict=True):
        if n < 2:
            raise ValueError(f"a distance needs 2 clips or more on each side, got {n} {name}")
        messages += pixel_warnings(name, features)
        if doubles := len(features) - len(set(features.digests)):
            messages.append(
                f"{doubles} of {len(features)} {name} clips repeat another one: duplicates bias the distance"
            )
        if dim is not None and n * features.values[0].size // dim <= dim:  # a clip has one feature, or one a frame
            messages.append(f"{n} {name} clips leave the covariance of {dim} features singular")
    if min(sizes) < 256:
        why = "varies much" if dim is None else "is mostly bias (it falls as 1 / n)"
        messages.append(f"with {min(sizes)} clips the distance {why}: it compares with nothing published")
    messages += count_warnings(*sizes)
    if shared := len(set(real.digests) & set(generated.digests)):
        messages.append(f"{shared} generated clips equal a real one in every pixel")
    return messages
