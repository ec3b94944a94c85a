"""Whether clips of sprites show what their prompts say, in closed form.

    python -m benchmarks.prompts prompts OUT.txt [--held-out=0.15]     writes all captions, one on each line
    python -m benchmarks.prompts score DRAWING ... [--held-out=0.15]   scores drawings of these prompts

A drawing is a folder that `python -m vf.main --mode=sample --config.sample.prompts=OUT.txt` has written. Contents that
training held out (`data.held_out`) are scored apart.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from vf import video
from vf.data.share import position
from vf.data.sprites import CONTENTS, WAYS
from vf.scores.sprites import followed

NAMES = ("shape", "colour", "background", "content", "way", "all")


def captions() -> list[str]:
    """Every caption that a sprite can have."""
    parts = [content.split(" over ") for content in CONTENTS]
    return [f"a {what} moves {way} over {where}" for what, where in parts for way in WAYS]


def is_held_out(caption: str, share: float) -> bool:
    """Whether training shows nothing of the caption's content."""
    what, where = caption.removeprefix("a ").split(" over ")
    return position(f"{what.split(' moves ')[0]} over {where}") < share


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("prompts", "score"))
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--held-out", type=float, default=0.15)
    args = parser.parse_args()
    if args.what == "prompts":
        args.paths[0].write_text("\n".join(captions()) + "\n")
        return
    print(f"{'prompts':20} {'clips':>6}" + "".join(f"{name:>12}" for name in NAMES))
    for folder in args.paths:
        meta = json.loads((folder / "meta.json").read_text())
        said = np.array(meta["labels"])
        found = followed(video.load_npz(folder / "clips.npz")["clips"], meta["base_frame"], said.tolist())
        held = np.array([is_held_out(caption, args.held_out) for caption in said])
        for name, rows in (("seen contents", ~held), ("held-out contents", held)):
            if rows.any():
                shares = "".join(f"{100 * found[one][rows].mean():11.1f}%" for one in NAMES)
                print(f"{name:20} {rows.sum():6}{shares}")


if __name__ == "__main__":
    main()
