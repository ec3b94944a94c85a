"""Measures detectors of cuts: precision and recall on joins of real clips, and on a film whose cuts are known.

    python -m benchmarks.shots --source=DIR [--cuts=300] [--seed=0] [--film=big_buck_bunny.mp4]

DIR is a folder of videos without cuts, at least two. Pieces of 8 to 59 frames, never two of one video in a row, are
joined and encoded as H.264 at 320 x 240; a second video has dissolves of 12 frames in place of the cuts. A cut is found
where a detector names exactly its first frame, a dissolve where it names one of its frames. With `--film`, Big Buck
Bunny (24 fps, 14,315 frames, any size) is compared with the cuts that people see (`BIG_BUCK_BUNNY`). Rows of
PySceneDetect need `pip install scenedetect-headless`.
"""

import argparse
import functools
import importlib.util
import itertools
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.filter import Graph

from vf.data import datasets
from vf.data.decode import Pixels, Video
from vf.data.shots import Meter

HEIGHT, WIDTH = 240, 320
PIECE = (8, 60)  # frames, the last exclusive
DISSOLVE = 12  # frames
SCORES = (4.0, 6.0, 8.0, 10.0, 12.0)
# The first frames of the shots of Big Buck Bunny but the first. All frames that any of the detectors below names,
# FFmpeg's at a score of 2.5, were looked at; a cut that none of them sees would be missing here.
BIG_BUCK_BUNNY = (
    285, 378, 553, 1145, 1346, 1456, 1531, 1666, 1711, 1763, 1813, 1919, 2154, 2194, 2394, 2494, 2704, 2831,
    2901, 2963, 3045, 3513, 3578, 3744, 3860, 3895, 3919, 3989, 4032, 4069, 4227, 4266, 4332, 4463, 4544,
    4612, 4672, 4697, 4726, 4796, 4900, 4942, 4979, 5013, 5079, 5131, 5292, 5307, 5371, 5430, 5518, 5579,
    5809, 5844, 6018, 6048, 6088, 6128, 6168, 6208, 6228, 6268, 6308, 6348, 6388, 6488, 6623, 6670, 6713,
    6753, 6833, 7013, 7093, 7131, 7325, 7400, 7500, 7546, 7613, 7661, 7732, 7769, 8024, 8085, 8091, 8154,
    8945, 9009, 9080, 9148, 9379, 9420, 9468, 9507, 9575, 9584, 9593, 9719, 9795, 9850, 9891, 9987, 10016,
    10081, 10097, 10125, 10184, 10234, 10260, 10303, 10339, 10409, 10453, 10574, 10613, 10637, 10842, 10999,
    11312, 11349, 11524, 11560, 11612, 11671, 13942, 14314,
)  # fmt: skip

Detector = Callable[[Path], set[int]]


def pictures(path: Path) -> Iterator[av.VideoFrame]:
    """All pictures of a video."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        yield from container.decode(stream)


def joined(videos: list[np.ndarray], cuts: int, seed: int, dissolve: int) -> tuple[Iterator[np.ndarray], list[range]]:
    """(frames, for each cut the frames that may be named) of pieces of `videos`, u8 [n h w 3], joined `cuts` times."""
    rng = np.random.default_rng(seed)
    pieces, truth, place, last = list[np.ndarray](), list[range](), 0, -1
    for number in range(cuts + 1):
        last = int(rng.choice([k for k in range(len(videos)) if k != last]))
        length = int(rng.integers(*PIECE)) + 2 * dissolve
        start = int(rng.integers(len(videos[last]) - length))
        pieces.append(videos[last][start : start + length])
        if number:
            truth.append(range(place, place + max(1, dissolve)))
        place += length - dissolve

    def frames() -> Iterator[np.ndarray]:
        tail = None
        for piece in pieces:
            head = piece
            if dissolve:
                if tail is not None:
                    weight = np.linspace(0, 1, dissolve + 2)[1:-1, None, None, None]
                    yield from ((1 - weight) * tail + weight * piece[:dissolve]).astype(np.uint8)
                    head = piece[dissolve:]
                head, tail = head[:-dissolve], head[-dissolve:]
            yield from head
        if tail is not None:
            yield from tail

    return frames(), truth


def write(path: Path, frames: Iterable[np.ndarray]) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "26", "preset": "veryfast"})
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode(None))


def read(path: Path) -> np.ndarray:
    """The frames of a video, u8 [n HEIGHT WIDTH 3]: the middle of a wider or higher one."""
    whole = Video(path).clip(np.arange(len(Video(path))), Pixels(0))
    top, left = ((have - want) // 2 for have, want in zip(whole.shape[1:3], (HEIGHT, WIDTH), strict=True))
    return whole[:, top : top + HEIGHT, left : left + WIDTH]


@functools.cache
def scores(path: Path) -> np.ndarray:
    """Score of every frame, as the preparation has it."""
    meter = Meter()
    for picture in pictures(path):
        meter.add(picture)
    return meter.score


@functools.cache
def whole_pictures(path: Path) -> np.ndarray:
    """Score of every frame by FFmpeg's own filter, of whole pictures in their own format."""
    graph: Graph | None = None
    found = []
    for picture in pictures(path):
        if graph is None:
            graph = Graph()
            size = {"width": picture.width, "height": picture.height, "format": picture.format}
            chain = [graph.add_buffer(**size, time_base=Fraction(1, 25)), graph.add("scdet", "threshold=100")]
            for one, other in itertools.pairwise([*chain, graph.add("buffersink")]):
                one.link_to(other)
            graph.configure()
        graph.vpush(picture)
        found.append(float(graph.vpull().metadata["lavfi.scd.score"]))
    return np.array(found)


def scene_detect(name: str) -> Detector:
    """A detector of PySceneDetect's at its defaults, without a least length of scenes."""

    def detect(path: Path) -> set[int]:
        import scenedetect

        manager = scenedetect.SceneManager()
        manager.add_detector(getattr(scenedetect.detectors, name)(min_scene_len=1))
        manager.detect_scenes(scenedetect.open_video(str(path), backend="pyav"))
        return {start.frame_num for start, _ in manager.get_scene_list()[1:]}

    return detect


def precision_and_recall(found: set[int], truth: list[range]) -> tuple[float, float]:
    """Shares of what is found that is true, and of what is true that is found; frames of one dissolve count once."""
    hit = [any(frame in found for frame in frames) for frames in truth]
    true = set(itertools.chain(*truth))
    wrong = len(found - true)
    return sum(hit) / max(1, sum(hit) + wrong), sum(hit) / len(truth)


def detectors() -> dict[str, Detector]:
    """{name: detector}; those of PySceneDetect where it is installed."""
    found: dict[str, Detector] = {}
    for what, of in (("64 x 64, RGB", scores), ("whole picture", whole_pictures)):
        for least in SCORES:
            found[f"FFmpeg's score, {what}, above {least:g}"] = lambda path, of=of, least=least: set(
                (np.flatnonzero(of(path)[1:] > least) + 1).tolist()
            )
    if importlib.util.find_spec("scenedetect"):
        names = ("ContentDetector", "AdaptiveDetector", "HistogramDetector", "HashDetector")
        found |= {f"PySceneDetect, {name}": scene_detect(name) for name in names}
    return found


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--cuts", type=int, default=300, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--film", type=Path, help="Big Buck Bunny (default: none)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vf-benchmark-") as scratch:
        clips = [read(item.path) for item in datasets.folder(args.source, None, 1, None).items]
        truths = {}
        for name, dissolve in (("cuts", 0), ("dissolves", DISSOLVE)):
            path = Path(scratch, f"{name}.mp4")
            frames, truths[path] = joined(clips, args.cuts, args.seed, dissolve)
            write(path, frames)
        if args.film:
            truths[args.film] = [range(k, k + 1) for k in BIG_BUCK_BUNNY]
        print(f"| detector | {' | '.join(f'{path.stem}: precision, recall' for path in truths)} | s |")
        print("| --- " * (2 + len(truths)) + "|")
        for name, detect in detectors().items():
            started = time.perf_counter()
            shares = [precision_and_recall(detect(path), truth) for path, truth in truths.items()]
            seconds = time.perf_counter() - started
            cells = [f"{precision:.3f}, {recall:.3f}" for precision, recall in shares]
            # Scores are computed once for all thresholds.
            print(f"| {name} | {' | '.join(cells)} | {f'{seconds:.1f}' if seconds > 0.1 else ''} |", flush=True)


if __name__ == "__main__":
    main()
