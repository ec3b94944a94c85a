"""What a source of clips to be scored has: each of its clips as a function that reads it.

A source is a folder of videos, animations or folders of frames, or one video; the arrays of a file, or of a drawing of
a run; or a prepared data set.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Literal, NamedTuple, NoReturn

import av
import numpy as np
from PIL import Image

from vf.data import archives, datasets, listing, reader
from vf.data.clips import Windows
from vf.data.decode import DAMAGE, Video, error_text, printable
from vf.data.manifest import read_manifest, remark_lines
from vf.data.notes import is_loss
from vf.data.pixels import Pixels
from vf.nets import resize
from vf.run import media
from vf.types import UserError, counted
from vf.video import load_clips

THREADS = 8
ARRAYS = (".npz", ".npy")
SOURCES = "a folder (or .zip, .tar) of videos, a video, an .npz or .npy, a prepared data set or a drawing of a run"
Resampler = Literal["swscale", "antialiased"]
Subset = Literal["random", "first"]


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which clips of a source are taken, and how their pixels are made.

    Attributes:
        windows: which frames make a clip.
        size: side in pixels to which the largest centred square is resized; 0 leaves pictures unchanged.
        resampler: `swscale`, as in preparation, or `antialiased`, Pillow's bilinear truncated to whole numbers, as in
            cd-fvd; the latter for videos and frames only.
        split: split of the videos, several as `train+test`; "" takes all.
        n: number of clips; 0 takes all.
        fewer: whether fewer than n clips are accepted.
        subset: which n clips: at random (a permutation by `seed`), or the first in the order of their names.
        seed: seed of the permutation and of random windows.
        strict: whether a video that is too short is an error; otherwise it is left out, and counted.
    """

    windows: Windows
    size: int = 0
    resampler: Resampler = "swscale"
    split: str = ""
    n: int = 0
    fewer: bool = False
    subset: Subset = "random"
    seed: int = 0
    strict: bool = False


class UnreadableFile(UserError):
    """A file of a folder that looked whole cannot be decoded. `open_set` with `check` leaves such files out.

    Args:
        name: of the file, relative to the folder.
        reason: why.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{printable(name)}: {reason}; remove or repair it")
        self.name, self.reason = name, reason


class Candidates(NamedTuple):
    """All clips of a source that have the right windows, in order."""

    readers: list[Callable[[], np.ndarray]]
    digest: str  # hash of the content of the files, 12 hex digits
    too_short: int  # number of videos without one clip
    bad: Mapping[str, str] = {}  # {name: reason} of files that cannot be read
    notes: Mapping[str, list[str]] = {}  # {name: what is unusual about a file}
    rate: float = 0.0  # frames per second of the clips, their median; 0 = unknown


def describe(windows: Windows) -> str:
    """Length and pace of a clip, for the eye: `16 frames with stride 1`."""
    pace = f"at {windows.fps:g} frames per second" if windows.fps else f"with stride {windows.stride}"
    return f"{counted(windows.frames, 'frame')} {pace}"


def _generator(choice: Choice, record: int) -> np.random.Generator | None:
    return np.random.default_rng([choice.seed, record]) if choice.windows.start == "random" else None


def of_array(path: Path, choice: Choice) -> Candidates:
    """Those of an .npz or .npy, or of the folder of a drawing that has several. Raises UserError."""
    shards = media.Shards(path) if path.is_dir() else None
    clips = shards or load_clips(path)
    if not len(clips):
        raise UserError(f"{path} holds no clips")
    if isinstance(clips, np.ndarray):
        _check_axes(path, clips, choice.windows)
    if choice.size and clips.shape[2:4] != (choice.size, choice.size):
        raise UserError(
            f"{path} holds clips of {clips.shape[2]} x {clips.shape[3]} pixels and the protocol asks for "
            f"{choice.size}: store that size, or score videos, which are resized here"
        )
    if choice.split:
        _warn_of_no_splits(path, choice)
    windows = choice.windows
    try:
        per_clip = windows.records(clips.shape[1], 0.0)
    except ValueError as error:
        raise UserError(f"{path}: {error}; an .npz has no rate, set fps to 0 to go by stride", "fps") from error
    if not per_clip:
        raise UserError(
            f"{path} holds clips of {counted(clips.shape[1], 'frame')}, too few for {describe(windows)}: its array is "
            f"{list(clips.shape)}, read as [clips frames height width 3]; take at most {clips.shape[1]} frames",
            "frames",
        )

    def read(k: int) -> np.ndarray:
        return clips[k // per_clip][windows.indices(clips.shape[1], 0.0, k % per_clip, _generator(choice, k))]

    digest = hashlib.sha256(str(clips.shape).encode())
    for piece in shards.pieces() if shards else [clips]:  # in whatever files, the same clips are the same set
        digest.update(np.ascontiguousarray(piece).data)
    readers: list[Callable[[], np.ndarray]] = [functools.partial(read, k) for k in range(len(clips) * per_clip)]
    return Candidates(readers, digest.hexdigest()[:12], 0, rate=windows.rate(_shown_rate(path)))


def _shown_rate(path: Path) -> float:
    """Frames per second at which the pictures of a drawing play, which is its data's rate; 0 for other arrays."""
    facts = (path if path.is_dir() else path.parent) / "meta.json"
    return float(json.loads(facts.read_text()).get("fps", 0)) if facts.is_file() else 0.0


def _check_axes(path: Path, clips: np.ndarray, windows: Windows) -> None:
    """Raises UserError where an array has as many clips as the frames that are taken, and more frames: time is first.

    Warns where that is likely, since what should be neighbouring clips are more alike than neighbouring frames.
    """
    n, frames = clips.shape[:2]
    if n == windows.frames < frames:
        raise UserError(
            f"{path} holds an array {list(clips.shape)}: {counted(n, 'clip')} of {counted(frames, 'frame')}, or, time "
            f"first, {counted(frames, 'clip')} of {counted(n, 'frame')}, as the protocol takes: store clips first; if "
            f"they are, store {windows.frames} frames of each",
            "frames",
        )
    some = clips[:8, :8].astype(np.float32)
    if min(some.shape[:2]) > 1 and abs(np.diff(some, axis=1)).mean() > 2 * abs(np.diff(some, axis=0)).mean():
        logging.warning(
            "%s holds an array %s whose neighbouring clips are more alike than neighbouring frames: is time its first "
            "axis, where clips should be?",
            path, list(clips.shape),
        )  # fmt: skip


def of_prepared(path: Path, choice: Choice) -> Candidates:
    """Those of a prepared data set. Raises UserError."""
    from vf.data.prepared import Prepared  # TFDS takes a second to import

    manifest = read_manifest(path)
    source = Prepared(path, windows=choice.windows, split=choice.split or "+".join(manifest["splits"]))
    if choice.size and source.size != choice.size:
        raise UserError(
            f"{path} was prepared at {source.size} pixels and the protocol asks for {choice.size}: prepare it again "
            "at that size",
            "size",
        )
    if choice.size and choice.resampler != "swscale":
        raise UserError(
            f"{path} was prepared with FFmpeg's scaler and the protocol asks for the resampler {choice.resampler}: "
            "score the videos themselves, or take the resampler swscale",
            "resampler",
        )
    if source.rejected and choice.strict:
        _raise_too_short(path, choice, [f"{name} {why}" for name, why in source.rejected.items()])

    def read(k: int) -> np.ndarray:
        return source.clip(k, _generator(choice, k))["video"]

    # Not the manifest's fingerprint, which includes the path of the source: the same data prepared elsewhere is the
    # same set.
    pixels = {name: manifest["parameters"][name] for name in ("size", "encoding", "quality", "crop", "resize")}
    index = [manifest["splits"][name]["index"] for name in source.split.split("+")]
    digest = hashlib.sha256(json.dumps([pixels, index], sort_keys=True).encode()).hexdigest()[:12]
    readers: list[Callable[[], np.ndarray]] = [functools.partial(read, k) for k in range(len(source))]
    return Candidates(readers, digest, len(source.rejected), rate=source.fps)


def _warn_of_no_splits(path: Path, choice: Choice) -> None:
    logging.warning("%s does not say which of its clips are of split %s: all are taken", path, choice.split)


def _raise_too_short(path: Path, choice: Choice, short: Sequence[str]) -> NoReturn:
    raise UserError(
        f"{counted(len(short), 'clip')} of {path} too short for {describe(choice.windows)} (the first, {short[0]}): "
        "repeating frames would change the score, so take shorter clips",
        "frames",
    )


class _Probed(NamedTuple):
    frames: int
    fps: float
    digest: str
    pixels: int  # of a picture
    notes: list[str]


def of_folder(path: Path, choice: Choice, check: bool) -> Candidates:
    """Those of a folder, an archive or one video; `check` as in `vf.scores.sets.open_set`. Raises UserError."""
    all_clips = _listed(path)
    lost = dict(all_clips.lost)
    if sentence := all_clips.passed_over():
        logging.warning("%s: %s", path, sentence)
    splits = set(filter(None, choice.split.split("+")))
    if splits and not listing.has_splits(all_clips.items):
        _warn_of_no_splits(path, choice)
        splits = set()
    items = [item for item in all_clips.items if not splits or item.split in splits]
    if not items:
        splits_found = sorted({item.split for item in all_clips.items})
        raise UserError(
            f"{path} has no clips of split {choice.split}: its folders name {', '.join(splits_found)}", "split"
        )

    def probe(item: listing.Item) -> _Probed | str:
        try:
            return _probe(item)
        except DAMAGE as error:
            return error_text(error)

    with ThreadPoolExecutor(THREADS) as pool:
        probed = dict(zip(items, pool.map(probe, items), strict=True))
    lost |= {item.name: why for item, why in probed.items() if isinstance(why, str)}
    whole = {item: facts for item, facts in probed.items() if not isinstance(facts, str)}
    readers, short, digest = _readers(path, whole, choice)
    if check and (undecodable := _undecodable(readers)):
        lost |= undecodable
        # From the start again, since random windows depend on the number of a clip.
        whole = {item: facts for item, facts in whole.items() if item.name not in undecodable}
        readers, short, digest = _readers(path, whole, choice)
    if not whole:
        name, why = next(iter(lost.items()))
        raise UserError(
            f"of {counted(len(lost), 'clip')} of {path} none can be read (the first, {printable(name)}: {why})"
        )
    if short and choice.strict:
        _raise_too_short(path, choice, short)
    if short:
        logging.warning("%s of %s too short for %s", counted(len(short), "video"), path, describe(choice.windows))
    bad = {printable(name): why for name, why in lost.items()}
    notes = {printable(item.name): facts.notes for item, facts in whole.items() if facts.notes}
    if remarks := [(name, note) for name, all_notes in notes.items() for note in all_notes if is_loss(note)]:
        logging.warning("%s: %s", path, "; ".join(line.strip() for line in remark_lines("notes", remarks)))
    rates = [facts.fps for facts in whole.values() if facts.fps]
    rate = choice.windows.rate(float(np.median(rates))) if rates else 0.0
    return Candidates(readers, digest, len(short), bad, notes, rate)


def _listed(path: Path) -> listing.Listing:
    """The clips of a folder or archive, or the one clip of a video. Raises UserError where there are none."""
    if not path.is_file() or path.suffix.lower() in archives.ARCHIVES:
        return datasets.folder(path, None, 1, None)
    if not (why := listing.why_no_clip(path)):
        return listing.Listing([listing.Item(path.name, path)])
    raise UserError(
        f"{path} {why}: name {SOURCES}; unpack other archives first (`tar xf`, `unrar x`)",
        "source",
    )


def _undecodable(readers: Sequence[Callable[[], np.ndarray]]) -> dict[str, str]:
    """{name: reason} of the files from which one of `readers` cannot decode its clip."""

    def attempt(read: Callable[[], np.ndarray]) -> UnreadableFile | None:
        try:
            read()
        except UnreadableFile as error:
            return error
        return None

    with ThreadPoolExecutor(THREADS, thread_name_prefix="decode") as pool:
        return {error.name: error.reason for error in pool.map(attempt, readers) if error}


def _readers(
    path: Path, whole: Mapping[listing.Item, _Probed], choice: Choice
) -> tuple[list[Callable[[], np.ndarray]], list[str], str]:
    """Of all clips of the videos `whole`: their readers, what is said of videos that are too short, and the digest."""
    readers: list[Callable[[], np.ndarray]] = []
    short: list[str] = []
    total = hashlib.sha256()
    for item, facts in whole.items():
        total.update(f"{item.name} {facts.digest}\n".encode("utf-8", "surrogateescape"))
        try:
            count = choice.windows.records(facts.frames, facts.fps)
        except ValueError as error:
            raise UserError(f"{path}: {printable(item.name)}: {error}; set fps to 0 to go by stride", "fps") from error
        if not count:
            short.append(f"{printable(item.name)} has {counted(facts.frames, 'frame')}")
        damage = functools.cache(functools.partial(_damage, item))  # decodes it once for all of its clips
        for record in range(count):
            rng = _generator(choice, len(readers))
            indices = choice.windows.indices(facts.frames, facts.fps, record, rng)
            readers.append(functools.partial(_decode, item, facts.pixels, indices, choice, damage))
    return readers, short, total.hexdigest()[:12]


def _open(item: listing.Item) -> reader.Clip:
    return reader.open_clip(item.path, item.member)


def _probe(item: listing.Item) -> _Probed:
    """Length, rate and hash of the content of one clip. Raises DAMAGE."""
    clip = _open(item)
    notes = clip.notes()  # raises an error where it is cut off
    pixels = clip.header.width * clip.header.height if isinstance(clip, Video) else 0  # images are decoded one by one
    return _Probed(len(clip), clip.fps, reader.digest(clip), pixels, notes)


def _damage(item: listing.Item) -> str:
    """Why some frame of the file cannot be decoded, and its preparation would leave it out; "" where all can."""
    try:
        video = _open(item)
        for _ in video.pictures():
            pass
    except DAMAGE as error:
        return error_text(error)
    return ""


def _decode(
    item: listing.Item, pixels: int, indices: np.ndarray, choice: Choice, damage: Callable[[], str]
) -> np.ndarray:
    """Decodes one clip, with so many pixels a picture, of a file of which `damage` gives "". Raises UnreadableFile."""
    scaler = _Antialiased(choice.size) if _is_antialiased(choice) else Pixels(choice.size)
    with _ROOM.of(pixels):
        if reason := damage():
            raise UnreadableFile(item.name, reason)
        try:
            return _open(item).clip(indices, scaler)
        except DAMAGE as error:
            raise UnreadableFile(item.name, error_text(error)) from error


def _is_antialiased(choice: Choice) -> bool:
    return choice.resampler == "antialiased" and choice.size > 0


class _Antialiased(Pixels):
    """Pixels by the resampler `antialiased`, picture by picture: whole clips at full size would fill the memory."""

    def __init__(self, size: int) -> None:
        super().__init__(0)
        self._side = size

    def __call__(self, picture: av.VideoFrame, aspect: Fraction = Fraction(1)) -> np.ndarray:
        whole, size = super().__call__(picture, aspect), self._side
        width, height = resize.short_side(whole.shape[0], whole.shape[1], size)
        left, top = (width - size) // 2, (height - size) // 2
        clip = np.empty((size, size, 3), np.uint8)
        for channel in range(3):  # in fractions, by Pillow, which needs no matrix and no further threads
            plane = Image.fromarray(whole[..., channel].astype(np.float32))
            x = np.asarray(plane.resize((width, height), Image.Resampling.BILINEAR))[
                top : top + size, left : left + size
            ]
            # + 1e-3, since rounding leaves whole numbers just too low
            clip[..., channel] = np.clip(x + 1e-3, 0, 255).astype(np.uint8)
        return clip


class _Room:
    """Room for so many pixels of videos that are decoded at once: a decoder holds up to 17 pictures."""

    def __init__(self, pixels: int) -> None:
        self._pixels = self._free = pixels
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def of(self, pixels: int) -> Iterator[None]:
        """Waits until there is room for a picture of `pixels`, or none is decoded."""
        pixels = min(pixels, self._pixels)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= pixels)
            self._free -= pixels
        try:
            yield
        finally:
            with self._changed:
                self._free += pixels
                self._changed.notify_all()


_ROOM = _Room(THREADS * 1920 * 1080)
