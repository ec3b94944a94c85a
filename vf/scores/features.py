"""Clips -> features, by any network: batches of one size over all devices, decoded ahead, kept on disk.

A set of clips is anything with a length, a shape and slices, as an array has them; what is decoded when asked for looks
alike. Every clip goes through once, and what the guards need is noted on the way: a digest of its pixels, its range.
"""

import dataclasses
import hashlib
import json
import logging
import os
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

from vf.nets.feature_network import Network
from vf.video import replacing


class Clips(Protocol):
    """A set of clips: u8 [n f h w 3], decoded as it is sliced. Arrays are such sets."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, f, h, w, 3)."""

    def __len__(self) -> int:
        """n."""

    def __getitem__(self, rows: slice, /) -> UInt8[np.ndarray, "k f h w 3"]:
        """Some of them, in order."""


@dataclasses.dataclass(frozen=True)
class Features:
    """What is known of a set of clips.

    Attributes:
        values: f32 [n d], or [n f d] where the network sees frames.
        digests: of each clip's pixels, 16 hex digits.
        lowest, highest: of each clip's pixels, u8 [n].
    """

    values: np.ndarray
    digests: tuple[str, ...]
    lowest: np.ndarray
    highest: np.ndarray

    def __len__(self) -> int:
        return len(self.values)


def fingerprint(clips: Clips, batch_size: int = 16) -> str:
    """12 hex digits of the SHA-256 of all pixels and their shape, whatever the set decodes them from."""
    if isinstance(made := getattr(clips, "fingerprint", None), str):
        return made  # a set that knows, without decoding
    digest = hashlib.sha256(str(list(clips.shape)).encode())
    for first in range(0, len(clips), batch_size):
        digest.update(np.ascontiguousarray(clips[first : first + batch_size]).data)
    return digest.hexdigest()[:12]


def extract(network: Network, clips: Clips, *, batch_size: int = 16, cache: Path | None = None) -> Features:
    """Features of every clip, in order; read from `cache` where the same clips went through the same network before.

    Args:
        network: what sees them.
        clips: at least one.
        batch_size: of the program, over all devices of this host; rounded up to a multiple of their number. It changes
            features by rounding only. The last batch is filled up with black clips, whose features are dropped.
        cache: folder; None keeps nothing. The name of a file there is a hash of network, protocol, parameters' names
            and pixels, so that nothing stale can be read.

    Raises:
        ValueError: no clips, another dtype or shape, clips that the network cannot take, or features that are not
            finite.
    """
    if len(clips.shape) != 5 or clips.shape[-1] != 3 or not len(clips):
        raise ValueError(f"expected one clip or more, [n f h w 3], got {list(clips.shape)}")
    if (dtype := getattr(clips, "dtype", np.dtype(np.uint8))) != np.uint8:
        raise ValueError(f"expected pixels as uint8, got {dtype}: convert [-1, 1] by (127.5 x + 128) first")
    hosts, me = jax.process_count(), jax.process_index()
    path = None
    if cache is not None:
        known = {"network": network.name, "protocol": network.protocol, "clips": fingerprint(clips), "version": 1}
        key = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]
        path = cache / f"{network.name}-{key}.safetensors"
        found = _read(path)
        there = found is not None
        if hosts > 1:  # all of them read it or none does: whoever computes waits for the others' share
            there = bool(np.all(multihost_utils.process_allgather(np.array(there))))
        if found is not None and there:
            return found
    # Hosts take turns of whole blocks, so that each decodes its own share only.
    share = -(-len(clips) // hosts)
    mine = range(min(me * share, len(clips)), min((me + 1) * share, len(clips)))
    made = _run(network, clips, mine, batch_size)
    if hosts > 1:
        made = _gather(made, share, len(clips))
    if not np.isfinite(made.values).all():
        bad = np.flatnonzero(~np.isfinite(made.values.reshape(len(made), -1)).all(1))
        raise ValueError(f"{len(bad)} clips have features with NaN or infinities (the first is clip {bad[0]})")
    if path is not None and me == 0:
        _write(path, made)
    return made


def _run(network: Network, clips: Clips, rows: range, batch_size: int) -> Features:
    count = len(jax.local_devices())
    batch_size = -(-min(batch_size, max(len(rows), 1)) // count) * count
    per_clip = clips.shape[1] if network.protocol.get("rows") == "frames" else 0
    parts: list[np.ndarray] = []
    digests: list[str] = []
    lowest, highest = np.zeros(len(rows), np.uint8), np.zeros(len(rows), np.uint8)
    pending: list[tuple[jax.Array, int]] = []  # the device works on one batch while the next one is decoded

    def collect() -> None:
        values, n = pending.pop(0)
        found = np.asarray(values)
        parts.append(found.reshape(-1, per_clip, network.dim)[:n] if per_clip else found[:n])

    for batch in _ahead(clips, rows, batch_size):
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
    while pending:
        collect()
    empty = (0, per_clip, network.dim) if per_clip else (0, network.dim)
    return Features(np.concatenate([np.zeros(empty, np.float32), *parts]), tuple(digests), lowest, highest)


def _ahead(clips: Clips, rows: range, batch_size: int) -> Iterator[np.ndarray]:
    """Batches, the next one being decoded while a batch is in use."""
    slices = [slice(first, min(first + batch_size, rows.stop)) for first in range(rows.start, rows.stop, batch_size)]
    with ThreadPoolExecutor(1, thread_name_prefix="clips") as pool:
        coming = [pool.submit(clips.__getitem__, s) for s in slices[:1]]
        for k in range(len(slices)):
            coming += [pool.submit(clips.__getitem__, s) for s in slices[k + 1 : k + 2]]
            yield np.asarray(coming.pop(0).result())


def _gather(made: Features, share: int, count: int) -> Features:
    """All hosts' features on every host."""

    def everywhere(x: np.ndarray) -> np.ndarray:
        padded = np.concatenate([x, np.zeros((share - len(x), *x.shape[1:]), x.dtype)])
        return np.asarray(multihost_utils.process_allgather(padded, tiled=True))[:count]

    numbers = np.array([[int(d[:8], 16), int(d[8:], 16)] for d in made.digests], np.uint32).reshape(-1, 2)
    digests = tuple(f"{a:08x}{b:08x}" for a, b in everywhere(numbers).tolist())
    return Features(everywhere(made.values), digests, everywhere(made.lowest), everywhere(made.highest))


def _read(path: Path) -> Features | None:
    """None where there is no such file, or a damaged one: it is then made again."""
    if not path.is_file():
        return None
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            header = file.metadata() or {}
        made = Features(
            arrays["values"], tuple(json.loads(header["digests"])), arrays["lowest"], arrays["highest"]
        )  # fmt: skip
        if header["content"] != _content(path, made):
            raise ValueError("it holds other values than were written")
    except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
        logging.warning("%s is damaged (%s) and will be made again", path, error)
        return None
    return made


def _content(path: Path, made: Features) -> str:
    """A hash of all that a file holds, and of its name: the format has none, and a flipped bit or a file that somebody
    renamed would pass for features."""
    digest = hashlib.sha256(" ".join([path.name, *made.digests]).encode())
    for array in (made.values, made.lowest, made.highest):
        digest.update(f"{array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _write(path: Path, made: Features) -> None:
    arrays = {"values": made.values, "lowest": made.lowest, "highest": made.highest}
    header = {"digests": json.dumps(made.digests), "content": _content(path, made)}
    try:
        with replacing(path) as temporary:
            save_file(arrays, temporary, metadata=header)
    except (OSError, safetensors.SafetensorError) as error:
        logging.warning("features are not kept: %s cannot be written (%s)", path, error)


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/vf/features`, or the same in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vf" / "features"


def oddities(name: str, found: Features) -> list[str]:
    """What is odd about the pixels of one set, one sentence each.

    Raises ValueError for pixels of [0, 1]."""
    told = []
    if found.highest.max() == 1:
        raise ValueError(
            f"no pixel of the {name} clips exceeds 1: values of [0, 1] were stored as uint8; multiply by 255 first"
        )
    if black := int((found.highest == 0).sum()):
        told.append(f"{black} of {len(found)} {name} clips are black throughout")
        if black == len(found):
            told[-1] += " (values of [0, 1] that were cast to uint8 look so)"
    if still := int((found.lowest == found.highest).sum()) - black:
        told.append(f"{still} of {len(found)} {name} clips are of one colour throughout")
    return told


def warnings(real: Features, generated: Features, dim: int | None, sizes: tuple[int, int] | None = None) -> list[str]:
    """What makes a distance of two sets doubtful, one sentence each.

    Args:
        real, generated: the sets.
        dim: numbers in a feature; None where the distance fits no covariance.
        sizes: clips of each that are compared at a time; None stands for all.

    Raises ValueError for what makes it meaningless: fewer than 2 clips, pixels of [0, 1]."""
    told = []
    sizes = sizes or (len(real), len(generated))
    for name, found, n in zip(("real", "generated"), (real, generated), sizes, strict=True):
        if n < 2:
            raise ValueError(f"a distance needs 2 clips or more on each side, got {n} {name}")
        told += oddities(name, found)
        if doubles := len(found) - len(set(found.digests)):
            told.append(f"{doubles} of {len(found)} {name} clips repeat another one: duplicates bias the distance")
        if dim is not None and n * found.values[0].size // dim <= dim:  # a clip has one feature, or one a frame
            told.append(f"{n} {name} clips leave the covariance of {dim} features singular")
    if min(sizes) < 256:
        why = "varies much" if dim is None else "is mostly bias (it falls as 1 / n)"
        told.append(f"with {min(sizes)} clips the distance {why}: it compares with nothing published")
    if sizes[0] != sizes[1]:
        told.append(f"{sizes[0]} real and {sizes[1]} generated clips: compare numbers of equal counts only")
    if same := len(set(real.digests) & set(generated.digests)):
        told.append(f"{same} generated clips equal a real one in every pixel")
    return told
