"""Features do not depend on batches, devices, hosts or caches; stale ones are not read; unusual clips are reported."""

import dataclasses
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vf.metrics.frechet import Moments, frechet_distance
from vf.nets.feature_network import Network
from vf.scores import features
from vf.scores.features import Features, distance_warnings, extract, fingerprint, pixel_warnings

N = 21


def clips(n: int = N, frames: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, frames, 5, 6, 3), np.uint8)


def colours(scale: float = 1.0, name: str = "colours", **protocol) -> Network:
    """Mean colour of each clip, and its contrast."""

    def apply(params, clips):
        x = params["scale"] * clips.astype(jnp.float32)
        return jnp.concatenate([x.mean((1, 2, 3)), x.std((1, 2, 3, 4))[:, None]], -1)

    return Network(name, 4, {"scale": np.float32(scale)}, apply, {"weights": str(scale), **protocol})


def by_frames() -> Network:
    def apply(params, clips):
        return clips.astype(jnp.float32).mean((2, 3)).reshape(-1, 3)

    return Network("frames", 3, {}, apply, {"rows": "frames"})


def true(clips: np.ndarray) -> np.ndarray:
    x = clips.astype(np.float64)
    return np.concatenate([x.mean((1, 2, 3)), x.std((1, 2, 3, 4))[:, None]], -1)


class Counted:
    """A set that counts what is decoded of it."""

    def __init__(self, clips: np.ndarray, fingerprint: str | None = None) -> None:
        self.clips, self.decoded, self.shape = clips, 0, clips.shape
        if fingerprint is not None:
            self.fingerprint = fingerprint

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, rows: slice) -> np.ndarray:
        found = self.clips[rows]
        self.decoded += len(found)
        return found


@pytest.mark.parametrize("batch_size", [1, 3, 8, 16, 21, 1000])
def test_features_do_not_depend_on_the_batch_size(batch_size):
    found = extract(colours(), clips(), batch_size=batch_size)
    np.testing.assert_allclose(found.values, true(clips()), rtol=1e-5)
    assert found.values.dtype == np.float32
    assert len(found) == len(found.digests) == len(found.lowest) == N
    np.testing.assert_array_equal(found.highest, clips().max((1, 2, 3, 4)))
    np.testing.assert_array_equal(found.lowest, clips().min((1, 2, 3, 4)))


@pytest.mark.parametrize("count", [1, 3, 8])
def test_features_do_not_depend_on_the_number_of_devices(monkeypatch, count):
    devices = jax.local_devices()[:count]
    assert len(devices) == count
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    network = colours()
    assert network.devices.size == count
    np.testing.assert_allclose(extract(network, clips(), batch_size=4).values, true(clips()), rtol=1e-5)


def test_the_distance_does_not_depend_on_the_order():
    order = np.random.default_rng(1).permutation(N)
    one, two = extract(colours(), clips(), batch_size=4), extract(colours(), clips()[order], batch_size=7)
    np.testing.assert_allclose(two.values, one.values[order], rtol=1e-6)
    assert two.digests == tuple(one.digests[k] for k in order)
    other = Moments.of(extract(colours(), clips(30, seed=1)).values)
    distances = [frechet_distance(Moments.of(found.values), other) for found in (one, two)]
    assert distances[0] == pytest.approx(distances[1], rel=1e-6)


def test_clips_that_fill_up_a_batch_never_count():
    """They are black, and this network has no number for black clips."""

    def apply(params, clips):
        return 1 / clips.astype(jnp.float32).mean((1, 2, 3, 4), keepdims=False)[:, None]

    network = Network("inverse", 1, {}, apply, {})
    found = extract(network, clips(9), batch_size=8)  # 7 of the second batch are filling
    assert found.values.shape == (9, 1)
    assert np.isfinite(found.values).all()
    assert all(low < high for low, high in zip(found.lowest, found.highest, strict=True))


@pytest.mark.parametrize("batch_size", [2, 8, 40])
def test_features_of_frames_stay_with_their_clip(batch_size):
    found = extract(by_frames(), clips(), batch_size=batch_size)
    np.testing.assert_allclose(found.values, clips().astype(np.float64).mean((2, 3)), rtol=1e-5)


def test_clips_are_decoded_once_and_in_order():
    counted = Counted(clips(), "known")
    extract(colours(), counted, batch_size=8)
    assert counted.decoded == N


def test_a_clip_that_cannot_be_decoded_stops_it():
    class Broken(Counted):
        def __getitem__(self, rows: slice) -> np.ndarray:
            if rows.start >= 8:
                raise OSError("disk")
            return super().__getitem__(rows)

    with pytest.raises(OSError, match="disk"):
        extract(colours(), Broken(clips(), "known"), batch_size=8)


def test_a_fingerprint_is_of_pixels_and_shape():
    assert fingerprint(clips(), 1) == fingerprint(clips(), 8) == fingerprint(Counted(clips()), 5)
    assert fingerprint(np.asfortranarray(clips())) == fingerprint(clips())
    changed = clips()
    changed[20, 2, 4, 5, 2] ^= 1
    others = [changed, clips()[:20], clips()[::-1], clips().reshape(N, 3, 6, 5, 3), clips().reshape(3 * N, 1, 5, 6, 3)]
    assert len({fingerprint(x) for x in [clips(), *others]}) == 6
    assert fingerprint(Counted(clips(), "known")) == "known"


def test_cached_features_are_read_again(tmp_path):
    first = extract(colours(), Counted(clips(), "known"), cache=tmp_path)
    again = Counted(clips(), "known")
    second = extract(colours(), again, batch_size=5, cache=tmp_path)
    assert again.decoded == 0
    for field in dataclasses.fields(Features):
        np.testing.assert_array_equal(getattr(first, field.name), getattr(second, field.name))
    assert [path.name.split("-")[0] for path in tmp_path.iterdir()] == ["colours"]


def test_no_stale_features_are_read(tmp_path):
    """Other weights, another resize, another network, other pixels: each has a separate file."""
    base = colours(resize="a")
    extract(base, clips(), cache=tmp_path)
    changed = clips()
    changed[3, 1, 2, 2, 0] ^= 255
    for k, (network, shown) in enumerate(
        [
            (colours(2.0, resize="a"), clips()),  # other weights, whatever their file is called
            (colours(resize="b"), clips()),
            (colours(name="other", resize="a"), clips()),
            (base, changed),
            (base, clips()[:20]),
            (base, clips()[::-1]),
        ]
    ):
        found = extract(network, shown, cache=tmp_path)
        np.testing.assert_allclose(found.values, network.params["scale"] * true(shown), rtol=1e-5)
        assert len(list(tmp_path.iterdir())) == k + 2


def flipped(content: bytes) -> bytes:
    """One bit of the last value."""
    return content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]


@pytest.mark.parametrize(
    "damage",
    [lambda c: b"", lambda c: c[:40], lambda c: c[:-8], lambda c: b"\xff" * len(c), flipped,
     lambda c: c.replace(b'"digests"', b'"digits_"'), lambda c: c.replace(b"values", b"walues")],
    ids=["empty", "header cut", "values cut", "noise", "flipped bit", "no digests", "no values"],
)  # fmt: skip
def test_damaged_files_are_computed_again(tmp_path, caplog, damage):
    true_values = extract(colours(), clips(), cache=tmp_path).values
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    np.testing.assert_array_equal(extract(colours(), clips(), cache=tmp_path).values, true_values)
    assert "is damaged" in caplog.text
    caplog.clear()
    extract(colours(), clips(), cache=tmp_path)
    assert not caplog.records


def test_a_cache_file_of_other_clips_is_not_used(tmp_path):
    """As a copy by hand may leave it."""
    extract(colours(), clips(), cache=tmp_path)
    (one,) = tmp_path.iterdir()
    extract(colours(), clips(seed=1), cache=tmp_path)
    (two,) = set(tmp_path.iterdir()) - {one}
    shutil.copy(two, one)
    np.testing.assert_allclose(extract(colours(), clips(), cache=tmp_path).values, true(clips()), rtol=1e-5)


def test_a_cache_that_cannot_be_written_costs_no_result(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    found = extract(colours(), clips(), cache=tmp_path / "file" / "cache")
    np.testing.assert_allclose(found.values, true(clips()), rtol=1e-5)
    assert "features are not kept" in caplog.text


def test_the_default_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert features.default_cache() == tmp_path / "vf" / "features"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert features.default_cache() == tmp_path / "home" / ".cache" / "vf" / "features"


class Hosts:
    """Several hosts as threads; their all-gather waits until all have called it."""

    def __init__(self, monkeypatch, count: int) -> None:
        self.count, self.local = count, threading.local()
        self.barrier, self.slots = threading.Barrier(count, timeout=30), [None] * count
        monkeypatch.setattr(jax, "process_count", lambda: count)
        monkeypatch.setattr(jax, "process_index", lambda: self.local.me)
        monkeypatch.setattr(features.multihost_utils, "process_allgather", self.gather)

    def gather(self, x, tiled=False):
        self.slots[self.local.me] = np.asarray(x)
        self.barrier.wait()
        found = (np.concatenate if tiled else np.stack)(list(self.slots))
        self.barrier.wait()
        return found

    def run(self, job) -> list:
        found: list = [None] * self.count

        def host(me: int) -> None:
            self.local.me = me
            try:
                found[me] = job(me)
            except BaseException as error:
                self.barrier.abort()
                found[me] = error

        threads = [threading.Thread(target=host, args=(k,)) for k in range(self.count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for one in found:
            if isinstance(one, BaseException):
                raise one
        return found


@pytest.mark.parametrize(("hosts", "n"), [(2, 21), (3, 7), (3, 2), (4, 5)])
def test_hosts_share_the_work(monkeypatch, hosts, n):
    """Also where some hosts have no clips; each host decodes only its part."""
    whole = extract(colours(), clips(n))
    sets = [Counted(clips(n), "known") for _ in range(hosts)]
    networks = [colours() for _ in range(hosts)]
    for found in Hosts(monkeypatch, hosts).run(lambda me: extract(networks[me], sets[me], batch_size=4)):
        np.testing.assert_allclose(found.values, whole.values, rtol=1e-6)
        assert found.digests == whole.digests
        np.testing.assert_array_equal(found.highest, whole.highest)
    assert sum(s.decoded for s in sets) == n


def test_hosts_whose_caches_differ_do_not_deadlock(monkeypatch, tmp_path):
    """Only the first host keeps features; caches need not be on a shared disk."""
    hosts = Hosts(monkeypatch, 2)
    networks = [colours(), colours()]
    for _ in range(2):
        found = hosts.run(lambda me: extract(networks[me], Counted(clips(), "k"), cache=tmp_path / str(me)))
        np.testing.assert_allclose(found[1].values, true(clips()), rtol=1e-5)
    shared = [Counted(clips(), "k") for _ in range(2)]
    hosts.run(lambda me: extract(networks[me], shared[me], cache=tmp_path / "0"))
    assert [s.decoded for s in shared] == [0, 0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (clips()[:0], r"one clip or more, \[n f h w 3\], got \[0, 3, 5, 6, 3\]"),
        (clips()[0], "got \\[3, 5, 6, 3\\]"),
        (clips().transpose(0, 1, 4, 2, 3), "got \\[21, 3, 3, 5, 6\\]"),
        (clips().astype(np.float32) / 255, "pixels as uint8, got float32"),
        (clips().astype(np.int64), "pixels as uint8, got int64"),
    ],
)
def test_arrays_that_are_not_clips_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        extract(colours(), wrong)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_not_finite(bad, tmp_path):
    shown = clips()
    shown[[4, 11]] = 200

    def apply(params, x):
        flat = x.astype(jnp.float32).std((1, 2, 3, 4)) == 0
        return jnp.where(flat, bad, 1.0)[:, None]

    with pytest.raises(ValueError, match=r"2 clips have features with NaN or infinities \(the first is clip 4\)"):
        extract(Network("bad", 1, {}, apply, {}), shown, cache=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_network_s_refusal_of_clips_is_reported():
    def apply(params, x):
        raise ValueError("9 frames or more")

    with pytest.raises(ValueError, match="9 frames or more"):
        extract(Network("picky", 1, {}, apply, {}), clips())


def fake(n: int, seed: int = 0, dim: int = 2, **changes) -> Features:
    """Features of ordinary clips, which give no warning."""
    given = {
        "values": np.zeros((n, dim), np.float32), "digests": tuple(f"{seed}-{k}" for k in range(n)),
        "lowest": np.zeros(n, np.uint8), "highest": np.full(n, 255, np.uint8),
    }  # fmt: skip
    return Features(**(given | changes))


def test_ordinary_features_give_no_warning():
    assert distance_warnings(fake(256), fake(256, 1), 2) == []


@pytest.mark.parametrize(
    ("real", "generated", "expected"),
    [
        (fake(256), fake(300, 1), ["256 real and 300 generated clips: compare numbers of equal counts only"]),
        (fake(256), fake(256, 1, highest=np.r_[[0] * 3, [255] * 253].astype(np.uint8)),
         ["3 of 256 generated clips are black throughout"]),
        (fake(256, lowest=np.r_[[255], [0] * 255].astype(np.uint8)), fake(256, 1),
         ["1 of 256 real clips are of one colour throughout"]),
        (fake(257, digests=("same", "same", *(str(k) for k in range(255)))), fake(257, 1),
         ["1 of 257 real clips repeat another one: duplicates bias the distance"]),
        (fake(256), fake(256, 1, digests=tuple(f"{k // 2}-{k}" for k in range(256))),
         ["2 generated clips equal a real one in every pixel"]),
        (fake(255), fake(255, 1),
         ["with 255 clips the distance is mostly bias (it falls as 1 / n): it compares with nothing published"]),
    ],
    ids=["counts", "black", "one colour", "duplicates", "copies", "few"],
)  # fmt: skip
def test_distance_warnings(real, generated, expected):
    assert distance_warnings(real, generated, 2) == expected


def test_too_few_clips_for_a_covariance():
    """n clips leave a covariance of rank n - 1."""
    assert (
        "real clips leave the covariance of 400 features singular"
        in distance_warnings(fake(400, dim=400), fake(401, 1, dim=400), 400)[0]
    )
    assert not any(
        "singular" in warning for warning in distance_warnings(fake(401, dim=400), fake(401, 1, dim=400), 400)
    )
    frames = fake(300, values=np.zeros((300, 2, 400), np.float32))  # two features a clip
    assert not any("singular" in warning for warning in distance_warnings(frames, frames, 400))


def test_a_kernel_distance_fits_no_covariance():
    assert distance_warnings(fake(255, dim=400), fake(255, 1, dim=400), None) == [
        "with 255 clips the distance varies much: it compares with nothing published"
    ]


def test_the_counts_are_those_compared_at_a_time():
    warning = distance_warnings(fake(1000), fake(1000, 1), 2, (100, 100))
    assert warning == [
        "with 100 clips the distance is mostly bias (it falls as 1 / n): it compares with nothing published"
    ]


def test_one_clip_has_no_distance():
    with pytest.raises(ValueError, match="2 clips or more on each side, got 1 generated"):
        distance_warnings(fake(5), fake(1, 1), 2)


def test_pixels_of_0_to_1():
    dim = fake(300, highest=np.ones(300, np.uint8))
    for call in (lambda: distance_warnings(dim, fake(300, 1), 2), lambda: pixel_warnings("real", dim)):
        with pytest.raises(ValueError, match=r"no pixel of the real clips exceeds 1: values of \[0, 1\]"):
            call()


def test_a_set_that_is_all_black():
    (warning,) = pixel_warnings("generated", fake(300, highest=np.zeros(300, np.uint8)))
    assert warning == (
        "300 of 300 generated clips are black throughout (values of [0, 1] that were cast to uint8 look so)"
    )
