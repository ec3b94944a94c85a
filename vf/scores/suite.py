"""All metrics by name: computes scores, with their protocols, of two sets of clips.

Each metric is a function of the features of one network: a distance of two sets, whose reference is that of real clips
to other real clips, or a statistic of one set, whose reference is that of the real clips.
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

from vf.activity import ACTIVITY
from vf.metrics import fvd, inception_score
from vf.metrics.frechet import Moments, frechet_distance
from vf.metrics.kernel import polynomial_mmd
from vf.metrics.protocol import ClipProtocol, Score
from vf.nets import clip
from vf.nets.feature_network import Network
from vf.scores import features
from vf.scores.features import Clips, Features

Distance = Callable[[np.ndarray, np.ndarray], float]


def flicker() -> Network:
    """VBench's temporal flickering of each clip, (255 - mean |x^(i+1) - x^i|) / 255: 1 for a still. Has no weights."""

    def apply(params: Any, clips: UInt8[jax.Array, "b f h w 3"]) -> Float[jax.Array, "b 1"]:
        x = clips.astype(jnp.float32)
        return ((255 - abs(x[:, 1:] - x[:, :-1]).mean((1, 2, 3, 4))) / 255)[:, None]

    return Network("flicker", 1, {}, apply, {"network": "(255 - mean |x^(i+1) - x^i|) / 255 of uint8 pixels"})


@dataclasses.dataclass(frozen=True)
class Segments:
    """Frames `first` ... `first + frames - 1` of every clip of a set of longer clips; a `Clips`."""

    clips: Clips
    first: int
    frames: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes (n, frames, h, w, 3)."""
        n, _, *rest = self.clips.shape
        return (n, self.frames, *rest)

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the whole set, with the range of frames."""
        return f"{features.fingerprint(self.clips)}[{self.first}:{self.first + self.frames}]"

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self.clips[rows][:, self.first : self.first + self.frames]


def extrapolate(
    distance: Distance, real: np.ndarray, generated: np.ndarray, *, points: int = 15, seed: int = 0
) -> float:
    """The distance of infinitely many generated clips: a of the fit `distance`_N = a + b / N (Chong & Forsyth 2020).

    N takes `points` values from n / 4 to n, each with a new subset without replacement, against all real clips, so that
    only the bias of the generated set is removed. Raises ValueError for fewer than 8 generated clips.
    """
    n = len(generated)
    if n < 8:
        raise ValueError(f"an extrapolation over the number of clips needs 8 or more, got {n}")
    rng = np.random.default_rng(seed)
    sizes = np.linspace(max(2, n // 4), n, points).astype(int)
    values = [distance(real, generated[rng.permutation(n)[:size]]) for size in sizes]
    return float(np.polynomial.Polynomial.fit(1 / sizes, values, 1).convert().coef[0])


def floor(distance: Distance, real: np.ndarray, n: int, seed: int = 0) -> tuple[float, int]:
    """(distance of two disjoint sets of real clips, their size): n each where there are 2 n, otherwise half of all."""
    size = min(n, len(real) // 2)
    order = np.random.default_rng(seed).permutation(len(real))
    return distance(real[order[:size]], real[order[size : 2 * size]]), size


def bootstrap_interval(
    distance: Distance, real: np.ndarray, generated: np.ndarray, draws: int, seed: int = 0
) -> tuple[float, float]:
    """95 % bootstrap interval (low, high): quantiles over `draws` resamples of both sets, shifted to the value.

    A resample repeats clips, and so has the bias of a smaller set; shifting the mean over resamples to the distance of
    the sets removes it.
    """
    rng = np.random.default_rng(seed)

    def resample(x: np.ndarray) -> np.ndarray:
        return x[rng.integers(len(x), size=len(x))]

    values = np.array([distance(resample(real), resample(generated)) for _ in range(draws)])
    low, high = np.quantile(values - values.mean(), [0.025, 0.975]) + distance(real, generated)
    return float(low), float(high)


@dataclasses.dataclass(frozen=True)
class Metric:
    """One metric: a `distance` of two sets, or a `statistic` of one set, or a similarity of a set to its `captions`.

    Attributes:
        network: name of the network whose features it compares, as `vf.scores.networks` takes it.
        facts: everything that changes the number except features and clips, for the protocol.
        distance: (real [n d], generated [m d]) -> value.
        statistic: features [n d] -> (value, its standard deviation or None).
        captions: (features [n d], those of captions [n e]) -> value.
        rows: whether features are of frames, [n f d], and are pooled to [n f, d] for the distance.
        per_frame: whether features [n f*d] hold those of each frame, which the metric takes as [n f d].
        gaussian: whether a distance fits covariances, which are singular and biased for few clips.
        min_clips: fewest clips of each set.
    """

    network: str
    facts: Mapping[str, Any]
    distance: Distance | None = None
    statistic: Callable[[np.ndarray], tuple[float, float | None]] | None = None
    captions: Distance | None = None
    rows: bool = False
    per_frame: bool = False
    gaussian: bool = True
    min_clips: int = 2


def metrics(lineage: fvd.Lineage) -> dict[str, Metric]:
    """{name: metric} of all metrics; Fréchet distances on I3D are computed as in `lineage`."""

    def video(real: np.ndarray, generated: np.ndarray) -> float:
        return fvd.fvd(real, generated, lineage)

    def frechet(ddof: int) -> Distance:
        return lambda real, generated: frechet_distance(Moments.of(real), Moments.of(generated), ddof)

    def jedi(real: np.ndarray, generated: np.ndarray) -> float:
        return 100 * polynomial_mmd(real, generated, degree=2, coef0=0.0, unbiased=False)

    def frame_kernel(real: np.ndarray, generated: np.ndarray) -> float:
        frames, dim = real.shape[1:]
        return polynomial_mmd(real.reshape(-1, dim), generated.reshape(-1, dim), degree=3, coef0=1.0, rows=frames)

    def mean(values: np.ndarray) -> tuple[float, None]:
        return float(np.mean(values, dtype=np.float64)), None

    def consistency(values: np.ndarray) -> tuple[float, None]:
        return mean(clip.frame_consistency(values))

    def similarity(values: np.ndarray, captions: np.ndarray) -> float:
        return mean(clip.clipsim(values, captions))[0]

    def inception(variant: str) -> Metric:
        settings = inception_score.VARIANTS[variant]
        score = functools.partial(inception_score.score, variant=settings)
        return Metric(
            f"c3d:{variant}", {"variant": variant, **dataclasses.asdict(settings)}, statistic=score, min_clips=1
        )

    facts = {"ddof": lineage.ddof, "dtype": lineage.dtype, "root": lineage.root}
    fit = {**facts, "fit": "a + b / N, 15 sizes from n / 4 to n"}
    kernel = {"kernel": "(x.y / d + 1)^3", "estimator": "unbiased, whole sets"}
    frame_pairs = {"kernel": "(x.y / d + 1)^3", "estimator": "unbiased, without pairs of frames of one clip"}
    square = {"kernel": "(x.y / d)^2", "estimator": "biased", "factor": 100}
    return {
        "fvd": Metric("i3d", facts, distance=video),
        "kvd": Metric("i3d", kernel, distance=fvd.kvd, gaussian=False),
        "fvd_infinity": Metric("i3d", fit, distance=functools.partial(extrapolate, video), min_clips=8),
        "fid": Metric("inception:clean", {"ddof": 1}, distance=frechet(1), rows=True),
        "fid_legacy_tensorflow": Metric("inception:legacy_tensorflow", {"ddof": 1}, distance=frechet(1), rows=True),
        "fid_legacy_pytorch": Metric("inception:legacy_pytorch", {"ddof": 1}, distance=frechet(1), rows=True),
        "fd_efficientnet": Metric("efficientnet", {"ddof": 1}, distance=frechet(1), rows=True),
        "kd_efficientnet": Metric("efficientnet", frame_pairs, distance=frame_kernel, gaussian=False),
        "is_tgan": inception("tgan"),
        "is_tganv2": inception("tganv2"),
        "is_styleganv": inception("styleganv"),
        "cd_fvd": Metric("videomae", {"ddof": 0}, distance=frechet(0)),
        "jedi": Metric("vjepa", square, distance=jedi, gaussian=False, min_clips=1),
        "clipsim": Metric("clip", {"scale": 1.0, "floor": None}, captions=similarity, per_frame=True, min_clips=1),
        "frame_consistency": Metric("clip", {}, statistic=consistency, per_frame=True, min_clips=1),
        "flicker": Metric("flicker", {}, statistic=mean, min_clips=1),
    }


SEGMENTS = "fvd_segments"
"""Name of `fvd` of each 16 frames of longer clips, which gives one score per segment and is not in `metrics`."""


_OTHER_NAMES = {  # {network: {metric: its name with other weights than the published ones}}
    "i3d": {"fvd": "fd_i3d", "kvd": "kd_i3d"},
    "videomae": {"cd_fvd": "fd_videomae"},
    "vjepa": {"jedi": "mmd_vjepa"},
}


@dataclasses.dataclass(frozen=True)
class Captions:
    """Embeddings of the captions of generated clips, [n d] in the order of clips, and facts for the protocol."""

    values: np.ndarray
    facts: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Suite:
    """Scores of generated clips against real ones; a `vf.metrics.protocol.Scorer`.

    Attributes:
        names: metrics to compute: keys of `metrics`, and `fvd_segments`.
        networks: {name: network} that the metrics need.
        protocol: which clips are compared, and the lineage of FVD.
        batch_size: clips per batch of the networks; not a part of the protocol.
        cache: folder of cached features; None caches none.
        keep_generated: whether features of generated clips are cached too.
        bootstrap: number of resamples for an interval of 95 %; 0 gives none.
        others: networks whose weights are not those of the published metric, which then has another name: `fvd`
            becomes `fd_i3d`, `kvd` `kd_i3d`, `cd_fvd` `fd_videomae`, `jedi` `mmd_vjepa`.
        captions: captions of the generated clips, for `clipsim`.
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
        """One or more scores for each name; `real` may be None where no metric is a distance.

        Raises ValueError where a set is too small, or has another shape than a metric needs.
        """
        known = metrics(fvd.LINEAGES[self.protocol.lineage])
        self._extracted.clear()
        scores: list[Score] = []
        for name in self.names:
            try:
                with ACTIVITY.doing(f"computing {name}"):
                    if name == SEGMENTS:
                        scores += self._segments(known["fvd"], real, generated)
                    else:
                        scores.append(self._score(name, known[name], real, generated))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        return scores

    @functools.cached_property
    def _extracted(self) -> dict[Any, Features]:
        """Features of the clips of the current call, since several metrics share a network."""
        return {}

    def _features(self, name: str, clips: Clips, *, keep: bool = True) -> Features:
        place = (clips.first, clips.frames) if isinstance(clips, Segments) else ()
        key = (name, id(clips.clips) if isinstance(clips, Segments) else id(clips), place)
        if key not in self._extracted:
            cache = self.cache if keep else None
            self._extracted[key] = features.extract(self.networks[name], clips, batch_size=self.batch_size, cache=cache)
        return self._extracted[key]

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
            extra = {"segment": [first, first + frames]}
            scores.append(self._score(f"fvd_segments_{first // frames:02}", metric, *pair, extra))
        return scores

    def _score(
        self,
        name: str,
        metric: Metric,
        real: Clips | None,
        generated: Clips,
        extra: Mapping[str, Any] | None = None,
    ) -> Score:
        network = self.networks[metric.network]
        if network.name in self.others:
            for published, other in _OTHER_NAMES.get(network.name, {}).items():
                name = name.replace(published, other)
        protocol: dict[str, Any] = {"metric": name, **metric.facts, **(extra or {}), "features": dict(network.protocol)}
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
        self, metric: Metric, distance: Distance, network: Network, real: Clips, generated: Clips
    ) -> tuple[float, float | None, dict[str, Any]]:
        """(value, distance of real to other real clips or None, details)."""
        if real.shape[1] != generated.shape[1]:
            raise ValueError(f"expected clips of one length, got {real.shape[1]} and {generated.shape[1]} frames")
        sampled = self._features(metric.network, generated, keep=self.keep_generated)
        sides = self._features(metric.network, real), sampled
        n, m = self._sizes(*map(len, sides))
        messages = features.distance_warnings(*sides, network.dim if metric.gaussian else None, (n, m))
        if real.shape[1] % 8 and network.name == "i3d":
            messages.append(f"{real.shape[1]} frames are no multiple of 8: ports of I3D pad such lengths differently")
        messages += _size_warnings(real, generated)
        if min(n, m) < metric.min_clips:
            raise ValueError(f"an extrapolation needs {metric.min_clips} clips or more on each side, got {min(n, m)}")

        def pooled(real: np.ndarray, generated: np.ndarray) -> float:
            # Resamples draw clips, not frames, since frames of one clip resemble each other.
            return distance(_pooled(real, metric.rows), _pooled(generated, metric.rows))

        real_values, generated_values = (side.values for side in sides)
        details: dict[str, Any] = {"n_real": n, "n_generated": m}
        value, details["std"] = self._trials(pooled, real_values, generated_values)
        if self.protocol.trials > 1:
            details["drawn_from"] = [len(real_values), len(generated_values)]
        reference = None
        if min(m, len(real_values) // 2) >= metric.min_clips:
            reference, details["reference_n"] = floor(pooled, real_values, m, self.protocol.seed)
        if self.bootstrap:
            if self.protocol.trials > 1:
                raise ValueError("several trials give a deviation already: take them or a bootstrap, not both")
            details["low"], details["high"] = bootstrap_interval(
                pooled, real_values, generated_values, self.bootstrap, self.protocol.seed
            )
        details["warnings"] = messages or None
        return value, reference, details

    def _property(
        self, metric: Metric, real: Clips | None, generated: Clips
    ) -> tuple[float, float | None, dict[str, Any]]:
        """(value, that of the real clips or None, details)."""
        sampled = self._features(metric.network, generated, keep=self.keep_generated)
        values, messages = _apart(sampled.values, generated, metric), features.pixel_warnings("generated", sampled)
        messages += features.count_warnings(len(generated if real is None else real), len(generated))
        messages += [] if real is None else _size_warnings(real, generated)
        details: dict[str, Any] = {"n_generated": len(values), "warnings": messages or None}
        if metric.statistic is None:
            assert metric.captions is not None
            if self.captions is None or len(self.captions.values) != len(values):
                available = 0 if self.captions is None else len(self.captions.values)
                raise ValueError(f"expected one caption for each of {len(values)} generated clips, got {available}")
            return metric.captions(values, self.captions.values), None, details
        value, details["std"] = metric.statistic(values)
        if real is None:
            return value, None, details
        real_values = _apart(self._features(metric.network, real).values, real, metric)
        return value, metric.statistic(real_values)[0], details | {"n_real": len(real_values)}

    def _sizes(self, real: int, generated: int) -> tuple[int, int]:
        """Numbers of clips of each set that are compared at a time."""
        if self.protocol.trials == 1:
            return real, generated
        return min(self.protocol.n_real or real, real), min(self.protocol.n_generated or generated, generated)

    def _trials(self, distance: Distance, real: np.ndarray, generated: np.ndarray) -> tuple[float, float | None]:
        """(mean, standard deviation) over the protocol's trials; the deviation is None for one trial."""
        if self.protocol.trials == 1:
            return distance(real, generated), None
        values = []
        n, m = self._sizes(len(real), len(generated))
        for k in range(self.protocol.trials):
            rng = np.random.default_rng([self.protocol.seed, k])
            values.append(
                distance(real[rng.permutation(len(real))[:n]], generated[rng.permutation(len(generated))[:m]])
            )
        return float(np.mean(values)), float(np.std(values))


def _pooled(values: np.ndarray, rows: bool) -> np.ndarray:
    return values.reshape(-1, values.shape[-1]) if rows else values


def _apart(values: np.ndarray, clips: Clips, metric: Metric) -> np.ndarray:
    """The features of `clips` as a metric's statistic or similarity takes them."""
    return values.reshape(len(values), clips.shape[1], -1) if metric.per_frame else values


def _size_warnings(real: Clips, generated: Clips) -> list[str]:
    """What is said of two sets whose pictures differ in size."""
    if real.shape[2:4] == generated.shape[2:4]:
        return []
    return [f"real clips are {_side_lengths(real)} pixels and generated ones {_side_lengths(generated)}"]


def _side_lengths(clips: Clips) -> str:
    return f"{clips.shape[2]} x {clips.shape[3]}"
