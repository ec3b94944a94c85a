"""Scores sprite clips in closed form, by analysis and synthesis, without a network or a reference set.

With background b (the median pixel: a sprite covers less than a quarter of its frame) and d = x - b, a sprite
of shape s at position p with mask m = alpha_mask(s, p) explains the frame best with the colour

    c = b + (m . d) / (m . m),    which leaves    |d|^2 - |m . d|^2 / (m . m)                              (1)

unexplained. `analyse` finds the (s, p) that leaves least: a grid over the whole frame, then parabolas to about
a hundredth of a pixel. The frame is then drawn again as y, with the *palette* colours nearest to b and c. A sprite
is found where both are near the palette, and y explains nearly all that such a sprite adds to its background,

    unexplained = |x - y|^2 / |y - b_palette|^2  <  MAX_UNEXPLAINED.                                       (2)

Estimated colours would not work here: with c = b they explain an empty frame completely, and a transparent
sprite too.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from vf.data.sprites import BACKGROUNDS, COLOURS, MARGIN, SHAPES, SPEED, WAYS, alpha_mask, bounce
from vf.metrics.consistency import base_frame_gap
from vf.metrics.protocol import Score

NONE = -1  # index of a shape or colour that was not found
# (2) is below 0.001 for real clips, and 1 for an empty frame. Beyond this bound shapes can no longer be distinguished:
# a disc of a sprite's size leaves at least 0.11, whatever shape it is taken for. Shares of 2,048 frames of 16 x 16 in
# which a sprite is found: half sprites, half-transparent ones, discs, empty frames, noise, inverted frames, and frames
# blurred with [1 1 1 1 1] 0 %; mean of four masks 2 %; 70 % opacity 34 %; white noise of standard deviation 8 95 %;
# blurred with [1 2 1] 100 %, and every shape is then recognised.
MAX_UNEXPLAINED = 0.10
ON_PALETTE = 50.0  # Euclidean distance; any two of the nine palette colours are at least 101 apart
# Largest spread over a clip. Real clips: 0.5 and 0 (rounding); with white noise of standard deviation 4: 6.2 and 2.5.
COLOUR_DRIFT = 16.0
BACKGROUND_DRIFT = 8.0
# RMS pixels. Real clips: at most 0.09 at size 16, 0.17 at 32 (steps of the table). Share of clips that pass at
# 8 x 16 x 16: jitter of 0.2 pixels 100 %, of 0.3 72 %, of 0.5 5 %, of 1.0 0 %; shuffled frames 0 %; frames 3 and 4
# swapped 46 % (the slow clips, which this moves by half a pixel).
PATH_ERROR = 0.4
SPEED_SLACK = 0.1  # relative, at either end of SPEED: a sprite that stands still is no sample of the data

_COLOURS = np.array(list(COLOURS.values()), np.float64)
_BACKGROUNDS = np.array(list(BACKGROUNDS.values()), np.float64)


@dataclasses.dataclass(frozen=True)
class SpriteAnalysis:
    """Estimates for n clips of f frames; colours in 0..255, positions (y, x) and areas in pixels."""

    background: np.ndarray  # float64 [n f 3]
    background_index: np.ndarray  # int64 [n f], into BACKGROUNDS, or NONE
    colour: np.ndarray  # float64 [n f 3], the sprite's
    colour_index: np.ndarray  # int64 [n f], into COLOURS, or NONE
    shape: np.ndarray  # int64 [n f], into SHAPES, or NONE where no sprite was found
    position: np.ndarray  # float64 [n f 2], of the sprite's centre as `Factors.path` has it
    area: np.ndarray  # float64 [n f], sum of the soft coverage
    centroid: np.ndarray  # float64 [n f 2], mean position of the coverage, which uses no template
    residual: np.ndarray  # float64 [n f], RMS over pixels and channels of frame - nearest ideal frame
    unexplained: np.ndarray  # float64 [n f], (2), as a share of the energy of the nearest ideal sprite
    found: np.ndarray  # bool [n f], colours on the palette and unexplained < MAX_UNEXPLAINED
    colour_constant: np.ndarray  # bool [n]
    background_constant: np.ndarray  # bool [n]
    shape_constant: np.ndarray  # bool [n]
    path_error: np.ndarray  # float64 [n], RMS pixels to the nearest path of the data (`nearest_path`)
    velocity: np.ndarray  # float64 [n 2], (y, x) pixels per frame along that path, at the paper's base frame
    speed: np.ndarray  # float64 [n], its norm
    smooth: np.ndarray  # bool [n], path_error < PATH_ERROR; False where a frame shows no sprite
    moving: np.ndarray  # bool [n], at a speed that the data has
    base_frame_colour: np.ndarray  # float64 [n], mean |colour - colour of the base frame| over its neighbours
    base_frame_background: np.ndarray  # float64 [n], the same of the background

    @property
    def content_constant(self) -> np.ndarray:
        """Whether shape, colour and background are the same in all frames, bool [n]."""
        return self.colour_constant & self.background_constant & self.shape_constant

    @property
    def valid(self) -> np.ndarray:
        """Whether every frame shows a sprite of constant content, on a smooth path at a speed of the data, bool [n]."""
        return self.content_constant & self.smooth & self.moving


def analyse(clips: np.ndarray, base_frame: int) -> SpriteAnalysis:
    """Analyses every frame and clip of `clips` uint8 [n f h h 3], f >= 3, with base frame `base_frame`.

    Raises ValueError where `clips` is no such array, or `base_frame` no frame of it.
    """
    if clips.dtype != np.uint8 or clips.ndim != 5 or clips.shape[-1] != 3 or clips.shape[2] != clips.shape[3]:
        raise ValueError(f"expected uint8 [n f h h 3], got {clips.dtype} {list(clips.shape)}")
    n, f, size = clips.shape[:3]
    if n == 0 or f < 3 or not 0 <= base_frame < f:
        raise ValueError(f"expected clips of at least 3 frames that hold the base, got {n} of {f}, base {base_frame}")
    frames = clips.reshape(n * f, size, size, 3)
    grid = _masks(size)
    parts = [_analyse_frames(frames[i : i + 256], *grid) for i in range(0, n * f, 256)]
    fields = {
        name: np.concatenate([piece[name] for piece in parts]).reshape(n, f, *parts[0][name].shape[1:])
        for name in parts[0]
    }
    known = (fields["colour_index"] != NONE) & (fields["background_index"] != NONE)
    found = known & (fields["unexplained"] < MAX_UNEXPLAINED)
    fields["shape"] = np.where(found, fields["shape"], NONE)
    neighbours = [i for i in (base_frame - 1, base_frame + 1) if 0 <= i < f]
    gap = {k: abs(fields[k][:, neighbours] - fields[k][:, [base_frame]]).mean((1, 2)) for k in ("colour", "background")}
    path_error, velocity = nearest_path(fields["position"], size)
    speed = np.linalg.norm(velocity, axis=1)
    relative = speed / (size * np.array(SPEED)[:, None])  # to the lowest and the highest speed
    return SpriteAnalysis(
        **fields,
        velocity=velocity,
        found=found,
        colour_constant=_is_constant(fields["colour_index"]) & (_range(fields["colour"]) < COLOUR_DRIFT),
        background_constant=_is_constant(fields["background_index"])
        & (_range(fields["background"]) < BACKGROUND_DRIFT),
        shape_constant=_is_constant(fields["shape"]),
        path_error=path_error,
        speed=speed,
        smooth=found.all(1) & (path_error < PATH_ERROR),
        moving=(relative[0] > 1 - SPEED_SLACK) & (relative[1] < 1 + SPEED_SLACK),
        base_frame_colour=gap["colour"],
        base_frame_background=gap["background"],
    )


def nearest_path(path: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Finds the motion of the data (straight, at constant speed, bouncing off the walls) nearest to `path` [n f 2].

    Returns float64: the RMS distance to it in pixels [n], and its velocity (y, x) at the base frame of the paper, in
    pixels per frame [n 2]. The two coordinates bounce independently, so each is compared with one table of all possible
    ones, in steps of 0.6 % of the frame's side for the position and 0.125 % for the velocity: a real path is up to
    0.6 % away.
    """
    n, f = path.shape[:2]
    start = np.linspace(MARGIN, 1 - MARGIN, 101) * size
    velocity = np.linspace(-1.25, 1.25, 161) * SPEED[1] * size
    time = np.arange(f) - f // 2
    table = bounce(start[:, None, None] + velocity[:, None] * time, size).reshape(-1, f)
    table = (table - size / 2).astype(np.float32)  # centred, so that float32 suffices
    half_norm = np.square(table).sum(1) / 2
    # The lines of the table pass their start at frame f // 2, one after the base frame, where some have bounced since.
    low, width = MARGIN * size, (1 - 2 * MARGIN) * size
    bounced = (start[:, None] - velocity - low) // width % 2
    at_base = (velocity * (1 - 2 * bounced)).reshape(-1)
    error, found = np.empty((n, 2)), np.empty((n, 2))
    for i in range(n):
        coordinate = (path[i].T - size / 2).astype(np.float32)  # 2 f
        best = (coordinate @ table.T - half_norm).argmax(1)
        error[i] = np.square(coordinate - table[best]).mean(1)
        found[i] = at_base[best]
    return np.sqrt(error.sum(1)), found


def followed(clips: np.ndarray, base_frame: int, captions: Sequence[str]) -> dict[str, np.ndarray]:
    """Whether each clip uint8 [n f h h 3] shows what its caption says, bool [n] by name.

    `shape`, `colour` and `background` are those of most frames, and False where no sprite is found; `content` is all
    three; `way` is that of the nearest path at the base frame; `all` is everything.

    Raises ValueError as `analyse`, and where a caption is not one of `vf.data.sprites.Factors.caption`.
    """
    said = []
    for caption in captions:
        words = caption.split()
        if len(words) != 7 or words[3] != "moves" or words[5] != "over":
            raise ValueError(f"expected captions such as 'a red square moves left over white', got {caption!r}")
        said.append((words[2], words[1], words[6], words[4]))
    analysis = analyse(clips, base_frame)
    y, x = analysis.velocity.T
    way = np.floor(np.arctan2(y, x) / (np.pi / 2) + 0.5).astype(int) % len(WAYS)
    made = {
        "shape": _named(SHAPES, analysis.shape), "colour": _named(tuple(COLOURS), analysis.colour_index),
        "background": _named(tuple(BACKGROUNDS), analysis.background_index), "way": [WAYS[k] for k in way],
    }  # fmt: skip
    pairs = zip(made.items(), zip(*said, strict=True), strict=True)
    found = {name: np.array(values) == np.array(words) for (name, values), words in pairs}
    found["content"] = found["shape"] & found["colour"] & found["background"]
    return found | {"all": found["content"] & found["way"]}


def _named(names: Sequence[str], index: np.ndarray) -> list[str]:
    """The name that most frames of each clip [n f] have; "" where that is none."""
    most = [np.bincount(row + 1, minlength=len(names) + 1).argmax() for row in index]
    return [("", *names)[k] for k in most]


def scores(clips: np.ndarray, base_frame: int) -> dict[str, float]:
    """The scores of `clips` uint8 [n f h h 3] with base frame `base_frame`, by name.

    Shares in [0, 1], all 1 for real clips: `found` of frames; `colour_constant`, `background_constant`,
    `shape_constant`, `content_constant` (all three), `smooth` (near a straight, bouncing path), `moving` (at a speed of
    the data) and `valid` (all of these) of clips.

    Variety: `shapes_seen`, `colours_seen` and `backgrounds_seen` are the numbers of different values among clips that
    show a sprite in most frames.

    The base frame against its neighbours: `base_frame_gap` (see the function; 1 for real clips), and
    `base_frame_colour` and `base_frame_background` (mean difference of the estimates in 0..255; below 0.1 for real
    clips).

    Medians: `path_error` over clips, in pixels; `unexplained` of (2) over frames.

    Raises ValueError as `analyse` and `base_frame_gap`.
    """
    analysis = analyse(clips, base_frame)
    shown = analysis.found.mean(1) > 0.5

    def kinds(index: np.ndarray) -> float:
        """Number of distinct values, where each clip counts by the value of most frames in which a sprite was found."""
        rows = (row[found & (row != NONE)] for row, found in zip(index[shown], analysis.found[shown], strict=True))
        return float(len({int(np.bincount(row).argmax()) for row in rows if row.size}))

    shares = ("found", "colour_constant", "background_constant", "shape_constant", "content_constant")
    means = (*shares, "smooth", "moving", "valid", "base_frame_colour", "base_frame_background")
    return {name: float(getattr(analysis, name).mean()) for name in means} | {
        "shapes_seen": kinds(analysis.shape),
        "colours_seen": kinds(analysis.colour_index),
        "backgrounds_seen": kinds(analysis.background_index),
        "base_frame_gap": base_frame_gap(clips, base_frame),
        "path_error": float(np.median(analysis.path_error)),
        "unexplained": float(np.median(analysis.unexplained)),
    }


class SpriteScores:
    """The function `scores` as a `Scorer`; each reference is the score of the real clips."""

    def __init__(self, base_frame: int) -> None:
        self.base_frame = base_frame

    def __call__(self, real: np.ndarray, generated: np.ndarray) -> list[Score]:
        """One score for each key of `scores`, named `sprites/<key>`. Raises ValueError as `scores`."""
        value, reference = scores(generated, self.base_frame), scores(real, self.base_frame)
        protocol = {
            "metric": "sprites",
            "version": 3,
            "base": self.base_frame,
            "n": len(generated),
            "n_real": len(real),
            "frames": generated.shape[1],
            "size": list(generated.shape[2:4]),
            "unexplained_below": MAX_UNEXPLAINED,
            "on_palette_within": ON_PALETTE,
            "colour_drift_below": COLOUR_DRIFT,
            "background_drift_below": BACKGROUND_DRIFT,
            "path_error_below": PATH_ERROR,
            "speed_slack": SPEED_SLACK,
        }
        return [Score(f"sprites/{key}", value[key], reference[key], protocol) for key in value]


def _masks(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Templates of norm 1, float32 [shapes*k h*w], and their positions [k 2]: a grid in steps of about size / 32 over
    the area in which sprites move, and a little beyond."""
    reach = 0.5 - MARGIN + 0.05
    line = size * (0.5 + np.linspace(-reach, reach, round(2 * reach * 32) + 1))
    centre = np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
    masks = np.concatenate([alpha_mask(shape, centre, size) for shape in range(len(SHAPES))])
    masks = masks.reshape(len(masks), -1).astype(np.float32)
    return masks / np.linalg.norm(masks, axis=1, keepdims=True), centre


def _analyse_frames(frames: np.ndarray, masks: np.ndarray, centres: np.ndarray) -> dict[str, np.ndarray]:
    """The per-frame fields of `SpriteAnalysis` except `found`, for `frames` uint8 [m h h 3]."""
    m, size = frames.shape[:2]
    pixels = frames.reshape(m, -1, 3).astype(np.float64)
    background = np.median(pixels, axis=1)
    d = pixels - background[:, None]  # m hw 3

    flat = d.transpose(0, 2, 1).reshape(3 * m, -1).astype(np.float32)  # one large product: small ones are slow
    explained = np.square(flat @ masks.T).reshape(m, 3, -1).sum(1)  # m k, the second term of (1)
    explained = explained.reshape(m, len(SHAPES), -1)
    best = [_refine(s, centres[explained[:, s].argmax(1)], d, size) for s in range(len(SHAPES))]
    shape = np.argmax([energy for _, energy in best], axis=0)
    position = np.stack([p for p, _ in best])[shape, np.arange(m)]

    mask = np.empty((m, size * size))
    for s in range(len(SHAPES)):
        mask[shape == s] = alpha_mask(s, position[shape == s], size).reshape(-1, size * size)
    contrast = np.einsum("mp,mpc->mc", mask, d) / np.square(mask).sum(1)[:, None]
    colour = background + contrast
    b, b_index = _nearest(background, _BACKGROUNDS)
    c, c_index = _nearest(colour, _COLOURS)
    # Every palette colour is far from every background, so the denominator of (2) is never 0.
    ideal = mask[..., None] * c[:, None] + (1 - mask[..., None]) * b[:, None]
    error = np.square(pixels - ideal)

    power = np.maximum(np.square(contrast).sum(1), 1.0)  # a frame without contrast has no coverage
    coverage = np.clip(np.einsum("mpc,mc->mp", d, contrast) / power[:, None], 0, 1)
    area = coverage.sum(1)
    grid = np.stack(np.meshgrid(*[np.arange(size) + 0.5] * 2, indexing="ij"), -1).reshape(-1, 2)
    return {
        "background": background,
        "background_index": b_index,
        "colour": colour,
        "colour_index": c_index,
        "shape": shape,
        "position": position,
        "area": area,
        "centroid": coverage @ grid / np.maximum(area, 1e-6)[:, None],
        "residual": np.sqrt(error.mean((1, 2))),
        "unexplained": error.sum((1, 2)) / (np.square(mask).sum(1) * np.square(c - b).sum(1)),
    }


def _refine(shape: int, start: np.ndarray, d: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Climbs from `start` [m 2] to the position that explains most of `d` [m hw 3]; returns it and how much."""
    position = start
    walls = size * np.array([MARGIN - 0.05, 1 - MARGIN + 0.05])

    def explained(p: np.ndarray) -> np.ndarray:
        mask = alpha_mask(shape, p, size).reshape(len(p), -1)
        return np.square(np.einsum("mp,mpc->mc", mask, d)).sum(1) / np.square(mask).sum(1)

    for step in size / 64 * np.array([1, 0.4, 0.1]):
        centre = explained(position)
        move = np.zeros_like(position)
        for axis in range(2):
            shift = step * np.eye(2)[axis]
            ahead, behind = explained(position + shift), explained(position - shift)
            curve = np.maximum(2 * centre - ahead - behind, 1e-9)
            move[:, axis] = step * np.clip((ahead - behind) / (2 * curve), -1, 1)
        position = np.clip(position + move, *walls)
    return position, explained(position)


def _nearest(colour: np.ndarray, palette: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The entry of `palette` [k 3] nearest to `colour` [m 3], and its index, or NONE if farther than ON_PALETTE."""
    distance = np.linalg.norm(colour[:, None] - palette, axis=-1)
    index = distance.argmin(1)
    return palette[index], np.where(distance.min(1) < ON_PALETTE, index, NONE)


def _is_constant(index: np.ndarray) -> np.ndarray:
    """Whether `index` [n f] has one value in all frames, and not NONE; bool [n]."""
    return (index == index[:, :1]).all(1) & (index[:, 0] != NONE)


def _range(colour: np.ndarray) -> np.ndarray:
    """Largest range over frames of any channel of `colour` [n f 3], float64 [n]."""
    return np.ptp(colour, axis=1).max(-1)
