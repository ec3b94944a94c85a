"""All metrics by name: from two sets of clips to scores that carry their protocol.

Each metric is a function of the features of one network: a distance of two sets, whose floor is that of real clips
against other real clips, or a property of one set, whose reference is that of the real ones.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from vf.metrics import fvd, inception_score
from vf.metrics.frechet import Moments, frechet_distance
from vf.metrics.kernel import polynomial_mmd
from vf.metrics.protocol import ClipProtocol, Score
from vf.nets import clip
from vf.nets.feature_network import Network
from vf.scores import features
from vf.scores.features import Clips, Features

Of = Callable[[np.ndarray, np.ndarray], float]


def flicker() -> Network:
    """VBench's temporal flickering of each clip: (255 - mean |x^(i+1) - x^i|) / 255, 1 for a still; no weights."""

    def apply(params: Any, clips: UInt8[jax.Array, "b f h w 3"]) -> Float[jax.Array, "b 1"]:
        x = clips.astype(jnp.float32)
        return ((255 - abs(x[:, 1:] - x[:, :-1]).mean((1, 2, 3, 4))) / 255)[:, None]

    return Network("flicker", 1, {}, apply, {"network": "(255 - mean |x^(i+1) - x^i|) / 255 of uint8 pixels"})


@dataclasses.dataclass(frozen=True)
class Segments:
    """Frames `first` ... `first + frames` of every clip of a longer set."""

    clips: Clips
    first: int
    frames: int

    @property
    def shape(self) -> tuple[int, ...]:
        """As `Clips`."""
        n, _, *rest = self.clips.shape
        return (n, self.frames, *rest)

    @property
    def fingerprint(self) -> str:
        """As the whole set's, with the place."""
        return f"{features.fingerprint(self.clips)}[{self.first}:{self.first + self.frames}]"

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self.clips[rows][:, self.first : self.first + self.frames]


def infinity(of: Of, real: np.ndarray, generated: np.ndarray, *, points: int = 15, seed: int = 0) -> float:
    """The distance of infinitely many generated clips: a of the fit `of`_N = a + b / N (Chong & Forsyth 2020).

    N takes `points` values from n / 4 to n, each a fresh subset without replacement, against all real clips: only the
    bias of the generated side is taken away. Raises ValueError for fewer than 8 generated clips.
    """
    n = len(generated)
    if n < 8:
        raise ValueError(f"an extrapolation over the number of clips needs 8 or more, got {n}")
    rng = np.random.default_rng(seed)
    sizes = np.linspace(max(2, n // 4), n, points).astype(int)
    found = [of(real, generated[rng.permutation(n)[:size]]) for size in sizes]
    return float(np.polynomial.Polynomial.fit(1 / sizes, found, 1).convert().coef[0])


def floor(of: Of, real: np.ndarray, n: int, seed: int = 0) -> tuple[float, int]:
    """The distance of two disjoint sets of real clips, and their size: n each where there are 2 n, else half of all."""
    size = min(n, len(real) // 2)
    order = np.random.default_rng(seed).permutation(len(real))
    return of(real[order[:size]], real[order[size : 2 * size]]), size


def interval(of: Of, real: np.ndarray, generated: np.ndarray, draws: int, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval: quantiles of `draws` resamples of both sets, moved so that their mean is the value.

    A resample repeats clips and is biased like a smaller set; moving takes that bias away.
    """
    rng = np.random.default_rng(seed)

    def again(x: np.ndarray) -> np.ndarray:
        return x[rng.integers(len(x), size=len(x))]

    found = np.array([of(again(real), again(generated)) for _ in range(draws)])
    low, high = np.quantile(found - found.mean(), [0.025, 0.975]) + of(real, generated)
    return float(low), float(high)


@dataclasses.dataclass(frozen=True)
class Metric:
    """One metric: a `distance` of two sets, or a property of one set `alone`, or of a set and its `captions`.

    Attributes:
        network: whose features it is of, as `vf.scores.networks` makes them.
        facts: what changes the number, beside the features and the clips.
        distance: (real [n d], generated [m d]) -> value.
        alone: features [n d] -> value, and its deviation where the metric has one.
        captions: (features [n d], captions' [n e]) -> value.
        rows: whether features are of frames, [n f d], and are pooled to [n f, d].
        gaussian: whether a distance fits covariances, which few clips leave singular and biased.
        least: clips on each side.
    """

    network: str
    facts: Mapping[str, Any]
    distance: Of | None = None
    alone: Callable[[np.ndarray], tuple[float, float | None]] | None = None
    captions: Of | None = None
    rows: bool = False
    gaussian: bool = True
    least: int = 2


def metrics(lineage: fvd.Lineage) -> dict[str, Metric]:
    """Every metric by name, its Fréchet and kernel distances on I3D as `lineage` has them."""

    def video(real: np.ndarray, generated: np.ndarray) -> float:
        return fvd.fvd(real, generated, lineage)

    def frechet(ddof: int) -> Of:
        return lambda real, generated: frechet_distance(Moments.of(real), Moments.of(generated), ddof)

    def jedi(real: np.ndarray, generated: np.ndarray) -> float:
        return 100 * polynomial_mmd(real, generated, degree=2, coef0=0.0, unbiased=False)

    def mean(values: np.ndarray) -> tuple[float, None]:
        return float(np.mean(values, dtype=np.float64)), None

    def consistency(values: np.ndarray) -> tuple[float, None]:
        return mean(clip.frame_consistency(_embeddings(values)))

    def similarity(values: np.ndarray, captions: np.ndarray) -> float:
        return mean(clip.clipsim(_embeddings(values), captions))[0]

    def inception(variant: str) -> Metric:
        how = inception_score.VARIANTS[variant]
        score = functools.partial(inception_score.score, variant=how)
        return Metric(f"c3d:{variant}", {"variant": variant, **dataclasses.asdict(how)}, alone=score, least=1)

    facts = {"ddof": lineage.ddof, "dtype": lineage.dtype, "root": lineage.root}
    fit = {**facts, "fit": "a + b / N, 15 sizes from n / 4 to n"}
    kernel = {"kernel": "(x.y / d + 1)^3", "estimator": "unbiased, whole sets"}
    square = {"kernel": "(x.y / d)^2", "estimator": "biased", "factor": 100}
    return {
        "fvd": Metric("i3d", facts, distance=video),
        "kvd": Metric("i3d", kernel, distance=fvd.kvd, gaussian=False),
        "fvd_infinity": Metric("i3d", fit, distance=functools.partial(infinity, video), least=8),
        "fid": Metric("inception:clean", {"ddof": 1}, distance=frechet(1), rows=True),
        "fid_legacy_tensorflow": Metric("inception:legacy_tensorflow", {"ddof": 1}, distance=frechet(1), rows=True),
        "fid_legacy_pytorch": Metric("inception:legacy_pytorch", {"ddof": 1}, distance=frechet(1), rows=True),
        "is_tgan": inception("tgan"),
        "is_tganv2": inception("tganv2"),
        "is_styleganv": inception("styleganv"),
        "cd_fvd": Metric("videomae", {"ddof": 0}, distance=frechet(0)),
        "jedi": Metric("vjepa", square, distance=jedi, gaussian=False, least=1),
        "clipsim": Metric("clip", {"scale": 1.0, "floor": None}, captions=similarity, least=1),
        "frame_consistency": Metric("clip", {}, alone=consistency, least=1),
        "flicker": Metric("flicker", {}, alone=mean, least=1),
    }


SEGMENTS = "fvd_segments"
"""Not in `metrics`: `fvd` of each 16 frames of longer clips, one score a segment."""


_OTHERWISE = {  # what a metric is called with weights that are not the published one's
    "i3d": {"fvd": "fd_i3d", "kvd": "kd_i3d"},
    "videomae": {"cd_fvd": "fd_videomae"},
    "vjepa": {"jedi": "mmd_vjepa"},
}


def _embeddings(values: np.ndarray) -> np.ndarray:
    """[n f*512] -> [n f 512]."""
    return values.reshape(len(values), -1, clip.TEXT_B32.dim)


@dataclasses.dataclass(frozen=True)
class Captions:
    """What the generated clips should show: embeddings [n d], one of each clip in order, and what made them."""

    values: np.ndarray
    facts: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Suite:
    """Scores of generated clips against real ones; a `vf.metrics.protocol.Scorer`.

    Attributes:
        names: metrics to compute: keys of `metrics`, and `fvd_segments`.
        networks: by the names that the metrics ask for.
        protocol: which clips these are, and whose FVD.
        batch_size: of the networks; no part of the protocol.
        cache: folder of features; None keeps none.
        keep_generated: whether features of generated clips are kept there too.
        bootstrap: resamples for an interval of 95 %; 0 gives none.
        others: networks whose weights are not those of the published metric, which then goes by another name: `fvd`
            becomes `fd_i3d`, `kvd` `kd_i3d`, `cd_fvd` `fd_videomae`, `jedi` `mmd_vjepa`.
        captions: for `clipsim`.
    """

    names: tuple[str, ...]
    networks: Mapping[str, Network]
    protocol: ClipProtocol
    batch_size: int = 16
    cache: Path | None = None
    bootstrap: int = 0
    others: frozenset[str] = frozenset()
    captions: Captions | None = None
    keep_generated: bool = True

    def __call__(self, real: Clips | None, generated: Clips) -> list[Score]:
        """One score or more for each name; `real` may be None where no metric is a distance.

        Raises ValueError when a set is too small or of another form."""
        known = metrics(fvd.LINEAGES[self.protocol.lineage])
        self._seen.clear()
        found: list[Score] = []
        for name in self.names:
            try:
                if name == SEGMENTS:
                    found += self._segments(known["fvd"], real, generated)
                else:
                    found.append(self._score(name, known[name], real, generated))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        return found

    @functools.cached_property
    def _seen(self) -> dict[Any, Features]:
        """Features of the clips under way: several metrics share a network."""
        return {}

    def _features(self, name: str, clips: Clips, *, keep: bool = True) -> Features:
        place = (clips.first, clips.frames) if isinstance(clips, Segments) else ()
        key = (name, id(clips.clips) if isinstance(clips, Segments) else id(clips), place)
        if key not in self._seen:
            cache = self.cache if keep else None
            self._seen[key] = features.extract(self.networks[name], clips, batch_size=self.batch_size, cache=cache)
        return self._seen[key]

    def _segments(self, metric: Metric, real: Clips | None, generated: Clips) -> list[Score]:
        if real is None:
            raise ValueError("a distance needs real clips")
        frames = 16
        count = min(real.shape[1], generated.shape[1]) // frames
        if count < 2:
            raise ValueError(f"segments are of {frames} frames: clips need 32 or more, got {generated.shape[1]}")
        scores = []
        for first in range(0, count * frames, frames):
            pair = Segments(real, first, frames), Segments(generated, first, frames)
            more = {"segment": [first, first + frames]}
            scores.append(self._score(f"fvd_segment_{first // frames:02}", metric, *pair, more))
        return scores

    def _score(
        self,
        name: str,
        metric: Metric,
        real: Clips | None,
        generated: Clips,
        more: Mapping[str, Any] | None = None,
    ) -> Score:
        network = self.networks[metric.network]
        if network.name in self.others:
            for theirs, ours in _OTHERWISE.get(network.name, {}).items():
                name = name.replace(theirs, ours)
        protocol: dict[str, Any] = {"metric": name, **metric.facts, **(more or {}), "features": dict(network.protocol)}
        if metric.distance is not None:
            if real is None:
                raise ValueError(f"{name} is a distance and needs real clips")
            value, reference, details = self._distance(metric, metric.distance, network, real, generated)
        else:
            value, reference, details = self._property(metric, real, generated)
        if metric.captions is not None and self.captions is not None:
            protocol["captions"] = dict(self.captions.facts)
        counts = {key: n for key in ("n_real", "n_generated") if (n := details.get(key)) is not None}
        sizes = {"generated_size": list(generated.shape[2:4]), "frames": generated.shape[1]}
        if real is not None:
            sizes["real_size"] = list(real.shape[2:4])
        protocol["clips"] = self.protocol.facts() | counts | sizes
        return Score(name, value, reference, protocol, {k: v for k, v in details.items() if v is not None})

    def _distance(
        self, metric: Metric, of: Of, network: Network, real: Clips, generated: Clips
    ) -> tuple[float, float | None, dict[str, Any]]:
        """Value, real against real, details."""
        if real.shape[1] != generated.shape[1]:
            raise ValueError(f"expected clips of one length, got {real.shape[1]} and {generated.shape[1]} frames")
        drawn = self._features(metric.network, generated, keep=self.keep_generated)
        sides = self._features(metric.network, real), drawn
        n, m = self._sizes(*map(len, sides))
        told = features.warnings(*sides, network.dim if metric.gaussian else None, (n, m))
        if real.shape[1] % 8 and network.name == "i3d":
            told.append(f"{real.shape[1]} frames are no multiple of 8: ports of I3D pad such lengths differently")
        if real.shape[2:4] != generated.shape[2:4]:
            told.append(f"real clips are {_sides(real)} pixels and generated ones {_sides(generated)}")
        if min(n, m) < metric.least:
            raise ValueError(f"an extrapolation needs {metric.least} clips or more on each side, got {min(n, m)}")

        def pooled(real: np.ndarray, generated: np.ndarray) -> float:
            """Clips are drawn whole: frames of one clip resemble each other."""
            return of(_pooled(real, metric.rows), _pooled(generated, metric.rows))

        one, two = (side.values for side in sides)
        details: dict[str, Any] = {"n_real": n, "n_generated": m}
        value, details["std"] = self._trials(pooled, one, two)
        if self.protocol.trials > 1:
            details["drawn_from"] = [len(one), len(two)]
        reference = None
        if min(m, len(one) // 2) >= metric.least:
            reference, details["reference_n"] = floor(pooled, one, m, self.protocol.seed)
        if self.bootstrap:
            if self.protocol.trials > 1:
                raise ValueError("several trials give a deviation already: take them or a bootstrap, not both")
            details["low"], details["high"] = interval(pooled, one, two, self.bootstrap, self.protocol.seed)
        details["warnings"] = told or None
        return value, reference, details

    def _property(
        self, metric: Metric, real: Clips | None, generated: Clips
    ) -> tuple[float, float | None, dict[str, Any]]:
        """Value, the same of the real clips, details."""
        drawn = self._features(metric.network, generated, keep=self.keep_generated)
        values, told = drawn.values, features.oddities("generated", drawn)
        details: dict[str, Any] = {"n_generated": len(values), "warnings": told or None}
        if metric.alone is None:
            assert metric.captions is not None
            if self.captions is None or len(self.captions.values) != len(values):
                there = 0 if self.captions is None else len(self.captions.values)
                raise ValueError(f"expected one caption for each of {len(values)} generated clips, got {there}")
            return metric.captions(values, self.captions.values), None, details
        value, details["std"] = metric.alone(values)
        if real is None:
            return value, None, details
        known = self._features(metric.network, real).values
        return value, metric.alone(known)[0], details | {"n_real": len(known)}

    def _sizes(self, real: int, generated: int) -> tuple[int, int]:
        """Clips of each side that are compared at a time, of so many."""
        if self.protocol.trials == 1:
            return real, generated
        return min(self.protocol.n_real or real, real), min(self.protocol.n_generated or generated, generated)

    def _trials(self, of: Of, real: np.ndarray, generated: np.ndarray) -> tuple[float, float | None]:
        """Mean and standard deviation over the protocol's trials."""
        if self.protocol.trials == 1:
            return of(real, generated), None
        found = []
        n, m = self._sizes(len(real), len(generated))
        for k in range(self.protocol.trials):
            rng = np.random.default_rng([self.protocol.seed, k])
            found.append(of(real[rng.permutation(len(real))[:n]], generated[rng.permutation(len(generated))[:m]]))
        return float(np.mean(found)), float(np.std(found))


def _pooled(values: np.ndarray, rows: bool) -> np.ndarray:
    return values.reshape(-1, values.shape[-1]) if rows else values


def _sides(clips: Clips) -> str:
    return f"{clips.shape[2]} x {clips.shape[3]}"
