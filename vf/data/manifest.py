"""The manifest of a prepared data set: a JSON file that describes its content and how it was made.

It is written last, so that a folder without it is no data set. Besides the parameters it has, for each split, the clips
in their order: name, frames, frames per second, label and the SHA-256 of the source. The fingerprint is a hash of these
and of the parameters.
"""

import dataclasses
import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import av

from vf.data.decode import printable
from vf.data.embeddings import Layout
from vf.data.listing import Listing, check_finished
from vf.data.staging import Parameters
from vf.types import UserError, counted

MANIFEST = "manifest.json"
_TOP = 3  # how many of the most frequent reasons are told
FORMAT = 2  # of the manifest; format 1, with at most one embedding per video, is read too


def make_manifest(
    parameters: Parameters,
    listing: Listing,
    facts_of: Mapping[str, Mapping[str, Any]],
    splits: Sequence[str],
    *,
    builder: Path,
    embeddings: Layout,
    shots: Mapping[str, Any],
    embedder: Mapping[str, Any] | None,
    seconds: Mapping[str, Any],
) -> dict[str, Any]:
    """The manifest of clips that are packed, ready for JSON.

    Args:
        parameters: of the preparation.
        listing: the clips of the source.
        facts_of: {name of a clip: its facts, as `vf.data.staging.stage` returns them}.
        splits: the splits that are packed, in order.
        builder: folder of the TFDS data set, relative to that of the manifest.
        embeddings: which embeddings clips have.
        shots: of each video that is cut, {video: {frames, fps, shots: [{first, frames, start and end in seconds, split
            or left_out}]}}.
        embedder: everything on which embeddings that were made here depend; None for others.
        seconds: time of each stage, and the number of workers.
    """
    classes = listing.classes
    label = {name: k for k, name in enumerate(classes)}
    by_split: dict[str, Any] = {}
    for split in splits:
        items = [i for i in listing.items if i.split == split and "rejected" not in facts_of[i.name]]
        facts = [facts_of[item.name] for item in items]
        counts = Counter(item.label for item in items)
        by_split[split] = {
            "clips": len(items),
            "frames": sum(f["frames"] for f in facts),
            "per_class": {name: counts[name] for name in classes if counts[name]},
            "index": {
                "name": [printable(item.name) for item in items],
                "frames": [f["frames"] for f in facts],
                "fps": [f["fps"] for f in facts],
                "label": [label.get(item.label, 0) for item in items],
                "sha256": [f["sha256"] for f in facts],
            },
        }
    lost = {printable(name): why for name, why in listing.lost.items()}  # before staging
    rejected = {printable(name): f["rejected"] for name, f in facts_of.items() if "rejected" in f}
    notes = {printable(name): f["notes"] for name, f in facts_of.items() if f.get("notes")}
    manifest = {
        "format": FORMAT,
        "builder": builder.as_posix(),
        "parameters": parameters.to_json(),
        "classes": list(classes),
        "embeddings": dataclasses.asdict(embeddings),
        "splits": by_split,
        "rejected": dict(sorted((lost | rejected).items())),
        "notes": notes,
        "unlisted": {printable(name): why for name, why in sorted(listing.unlisted.items())},
        "table_notes": listing.table_notes,
        "shots": dict(shots),
        "seconds": dict(seconds),
        "libraries": {"av": av.__version__, "ffmpeg": av.ffmpeg_version_info},
    }
    if embedder is not None:
        manifest["embedder"] = dict(embedder)
    decisive = json.dumps(
        [manifest["parameters"], by_split, *([] if embedder is None else [manifest["embedder"]])], sort_keys=True
    )
    return manifest | {"fingerprint": hashlib.sha256(decisive.encode()).hexdigest()[:12]}


def read_manifest(root: Path) -> dict[str, Any]:
    """Reads the manifest of a prepared data set. Raises UserError where there is none, or of an unknown format."""
    try:
        manifest = json.loads((root / MANIFEST).read_text())
    except FileNotFoundError:
        check_finished(root)
        raise UserError(
            f"no {MANIFEST} in {root}: it is no prepared data set; make one by python -m vf.data.prepare with "
            f"--out={root}"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{root / MANIFEST} cannot be read: {error}; prepare the data again") from error
    manifest.setdefault("shots", {})  # of data from before videos could be cut
    if isinstance(manifest.get("unlisted"), list):  # of an earlier version
        manifest["unlisted"] = dict.fromkeys(manifest["unlisted"], "is in no split file or table")
    manifest.setdefault("table_notes", [])  # which earlier versions did not have
    if manifest.get("format") == 1:
        return manifest | {"embeddings": dataclasses.asdict(Layout(manifest["embedding_dim"]))}
    if manifest.get("format") != FORMAT:
        raise UserError(
            f"{root / MANIFEST} has format {manifest.get('format')}, expected 1 or {FORMAT}: prepare the data again"
        )
    return manifest


def remark_lines(what: str, remarks: Sequence[tuple[str, str]], unit: str = "clip") -> list[str]:
    """The number of clips with remarks of a kind, and the most frequent reasons, each with one clip as an example.

    Reasons that differ only by their numbers count as one.
    """
    kinds: dict[str, list[tuple[str, str]]] = {}
    for name, why in remarks:
        kinds.setdefault(re.sub(r"\d+", "#", why), []).append((name, why))
    ranked = sorted(kinds.values(), key=len, reverse=True)
    lines = [f"{what}: {counted(len({name for name, _ in remarks}), unit)}"]
    lines += [f"  {len(kind):,} x such as {kind[0][0]}: {kind[0][1]}" for kind in ranked[:_TOP]]
    return lines + [f"  and {counted(len(ranked) - _TOP, 'more reason')}"] * (len(ranked) > _TOP)
