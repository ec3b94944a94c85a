"""Measures preparing and reading clips: frames/s against PyAV alone, clips/s against decoding on the fly.

    python -m benchmarks.data --source=DIR [--copies=20] [--workers=2] [--size=64] [--encodings raw png jpeg]

DIR is a folder of videos, such as UCF101's. Its files are used `copies` times, so that starting processes takes as
small a share as on a large data set. Everything is measured in the same run, in turn, on equally many processes, from
the page cache; the best of ROUNDS counts. Ratios of reading compare the best of each.
"""

import argparse
import itertools
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from vf.data import datasets
from vf.data.clips import Windows, centre_crop_box
from vf.data.encoding import ENCODINGS
from vf.data.folder import VideoFolder
from vf.data.manifest import read_manifest
from vf.data.pipeline import Source, batches
from vf.data.preparation import prepare
from vf.data.prepared import Prepared
from vf.data.staging import STAGES, Parameters

ROUNDS = 3
SECONDS = 4.0  # duration of each measurement of reading
FRAMES = 16


def decode_alone(path: str) -> int:
    """Number of frames of a file, decoded by PyAV without converting or storing them."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        return sum(1 for _ in container.decode(stream))


def decoding_rate(paths: list[str], pool: ProcessPoolExecutor) -> float:
    """Frames/s of all processes together."""
    started = time.perf_counter()
    frames = sum(pool.map(decode_alone, paths))
    return frames / (time.perf_counter() - started)


class Reference(VideoFolder):
    """The same windows, read by a few lines of PyAV and Pillow: seek, decode, convert, crop, resize."""

    def clip(self, record: int, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
        path, rate = self.videos[record].file, self.rates[record]
        indices = self.windows.indices(len(self.videos[record]), rate, 0, rng)
        numbers_needed, frames = set(indices.tolist()), []
        with av.open(path) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            container.seek(int(indices[0] / rate / stream.time_base), stream=stream)
            for picture in container.decode(stream):
                number = round(float(picture.pts * stream.time_base) * rate)
                if number in numbers_needed:
                    image = Image.fromarray(picture.to_ndarray(format="rgb24"))
                    box = centre_crop_box(picture.height, picture.width)
                    image = image.resize((self.size, self.size), Image.Resampling.BICUBIC, box)
                    frames.append(np.asarray(image))
                if number >= indices[-1]:
                    break
        return {"video": np.stack(frames), "label": np.array(0, np.int32)}


def reading_rate(source: Source, threads: int, workers: int = 0) -> float:
    """Clips/s of the loader, without its start."""
    with batches(source, seed=0, batch_size=32, threads=threads, workers=workers) as iterator:
        for _ in range(3 * max(1, workers)):
            next(iterator)
        started, count = time.perf_counter(), 0
        while time.perf_counter() - started < SECONDS:
            count += len(next(iterator)["video"])
        return count / (time.perf_counter() - started)


def best(measures: dict[str, Callable[[], float]]) -> dict[str, float]:
    """The highest of ROUNDS rates, measured in turn, so that other load affects all of them."""
    highest = dict.fromkeys(measures, 0.0)
    for _, name in itertools.product(range(ROUNDS), measures):
        highest[name] = max(highest[name], measures[name]())
    return highest


def main() -> None:
    """Prints two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--copies", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--size", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--encodings", nargs="+", choices=ENCODINGS, default=ENCODINGS, help="default: all")
    args = parser.parse_args()
    files = [item.path for item in datasets.folder(args.source, None, 1, None).items]
    with tempfile.TemporaryDirectory(prefix="vf-benchmark-") as scratch:
        copies = Path(scratch, "many", "all")
        copies.mkdir(parents=True)
        for copy, file in itertools.product(range(args.copies), files):
            (copies / f"{copy:03d}_{file.name}").symlink_to(file.resolve())
        numbers = itertools.count()

        def prepare_once(encoding: str, source: Path) -> tuple[Path, dict[str, Any]]:
            out = Path(scratch, f"{next(numbers)}")
            quality = 95 if encoding == "jpeg" else 0
            parameters = Parameters(
                dataset="folder", source=str(source), size=args.size, encoding=encoding, quality=quality, splits="",
                fold=1, table="", embeddings="", fps=0.0, min_frames=2,
            )  # fmt: skip
            return out, prepare(parameters, out, args.workers)

        last: dict[str, dict[str, Any]] = {}

        def preparing_rate(encoding: str) -> float:
            _, last[encoding] = prepare_once(encoding, copies.parent)
            frames = last[encoding]["splits"]["train"]["frames"]
            return frames / last[encoding]["seconds"]["all"]

        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(args.workers, context) as pool:
            paths = [str(path) for path in sorted(copies.iterdir())]
            decoding_rate(paths[: 4 * args.workers], pool)  # starts the processes
            prepared = {f"prepare, {e}": lambda e=e: preparing_rate(e) for e in args.encodings}
            rates = best({"PyAV decodes, alone": lambda: decoding_rate(paths, pool), **prepared})
        floor = rates["PyAV decodes, alone"]
        print(f"{len(paths)} files, {args.workers} processes, {args.size} x {args.size}\n")
        print("| preparation | frames/s | of PyAV alone | " + " | ".join(STAGES) + " | bytes a frame |")
        print("| --- " * (4 + len(STAGES)) + "|")
        for name, rate in rates.items():
            cells, size = [""] * len(STAGES), ""
            if name in prepared:
                encoding = name.split(", ")[1]
                seconds = last[encoding]["seconds"]
                total = sum(seconds[stage] for stage in STAGES)
                cells = [f"{100 * seconds[stage] / total:.0f} %" for stage in STAGES]
                folder, _ = prepare_once(encoding, args.source)
                stored = sum(path.stat().st_size for path in folder.glob("*/*/*array_record*"))
                frames = sum(split["frames"] for split in read_manifest(folder)["splits"].values())
                size = f"{stored / frames:,.0f}"
            print(f"| {name} | {rate:,.0f} | {100 * rate / floor:.0f} % | {' | '.join(cells)} | {size} |")

        windows = Windows(FRAMES)
        sources: dict[str, Source] = {
            "AVI, plain PyAV and Pillow": Reference(args.source, windows=windows, size=args.size),
            "AVI, on the fly": VideoFolder(args.source, windows=windows, size=args.size),
        }
        for encoding in args.encodings:
            sources[f"prepared, {encoding}"] = Prepared(prepare_once(encoding, args.source)[0], windows=windows)
        modes = {"threads": {"threads": args.workers}, "processes": {"threads": 0, "workers": args.workers}}
        rates_of_reading = best(
            {
                f"{name} | {args.workers} {mode}": lambda s=source, options=options: reading_rate(s, **options)
                for name, source in sources.items()
                for mode, options in modes.items()
            }
        )
        rates = {name: max(rate for key, rate in rates_of_reading.items() if key.startswith(name)) for name in sources}
        reference, ours = list(rates.values())[:2]
        print(
            f"\n| reading {FRAMES} x {args.size} x {args.size} | by | clips/s | times plain PyAV | times on the fly |"
        )
        print("| --- | --- | --- | --- | --- |")
        for name, rate in rates_of_reading.items():
            print(f"| {name} | {rate:,.0f} | {rate / reference:.1f} | {rate / ours:.1f} |")


if __name__ == "__main__":
    main()
