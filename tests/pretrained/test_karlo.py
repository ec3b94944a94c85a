"""Karlo's decoder: the same function as diffusers' two models, from either format; texts as transformers makes them."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.pretrained.torch_unets import FULL, SMALL, arrays, compare, made, randomised, text_proj
from tests.pretrained.torch_unets import karlo as torch_karlo
from vf.data.ucf101 import CLASSES
from vf.nets.tokenizer import END, START
from vf.pretrained import convert, karlo, safetensors_file, unet, weights, wrapped
from vf.types import UserError

torch = pytest.importorskip("torch")
load_file = pytest.importorskip("safetensors.torch").load_file
CLIP, CONTEXT, LENGTH = 128, 96, 16  # channels of CLIP and of context, tokens of a text


@pytest.fixture(scope="module")
def nets():
    return randomised(torch_karlo(**SMALL, context=CONTEXT)), randomised(text_proj(SMALL["width"], CONTEXT, CLIP), 1)


def both(nets):
    return arrays(nets[0]) | arrays(nets[1], "text_proj/")


@pytest.fixture(scope="module")
def ours(nets):
    lazy, about = karlo.canonical(both(nets), {}, {})
    return made(lazy), about


@pytest.fixture(scope="module")
def texts():
    """Two texts and the empty one: states, mask, pooled."""
    rng = np.random.default_rng(5)
    mask = np.arange(LENGTH) < np.array([[7], [12], [2]])
    return {
        "texts/states": rng.normal(size=(3, LENGTH, CLIP)).astype(np.float32),
        "texts/mask": mask.astype(np.float32),
        "texts/pooled": rng.normal(size=(3, CLIP)).astype(np.float32),
    }


def same_function(nets, params, about, texts, size):
    """As UnCLIPPipeline calls its two models: an image's embedding and a text; no image and the empty text."""
    unet, proj = nets
    rng = np.random.default_rng(0)
    z = rng.normal(size=(3, 1, size, size, 3)).astype(np.float32)
    t = np.array([3, 900, 500])
    image = rng.normal(size=(3, about["clip_dim"])).astype(np.float32)
    null, row = np.array([False, False, True]), np.array([1, 0, 2])
    states, mask, pooled = (torch.from_numpy(texts[f"texts/{name}"][row]) for name in ("states", "mask", "pooled"))
    absent = proj.learned_classifier_free_guidance_embeddings.detach()
    given = torch.where(torch.from_numpy(null)[:, None], absent, torch.from_numpy(image))
    with torch.no_grad():
        context, step = proj(
            image_embeddings=given, prompt_embeds=pooled, text_encoder_hidden_states=states,
            do_classifier_free_guidance=False,
        )  # fmt: skip
    visible = torch.nn.functional.pad(mask.bool().int(), (4, 0), value=1).bool()
    theirs = {"encoder_hidden_states": context, "class_labels": step, "attention_mask": visible}
    module = karlo.net(about | {"text_length": states.shape[1]}, texts=3, embedding=True)
    tree = weights.Weights("", params | texts, "", {}).tree()
    options = {"label": row, "cond": image, "null": null}
    errors = compare(module, tree, unet, z, t, options, theirs, module.unet, "unet/")
    wrong = {name: error for name, error in errors.items() if not error < 1e-4}
    assert not wrong, f"first wrong block: {next(iter(wrong.items()))}"


def test_every_block_gives_what_diffusers_gives(nets, ours, texts):
    same_function(nets, *ours, texts, 16)


@pytest.mark.slow
def test_full_width_gives_what_diffusers_gives():
    """Karlo itself: 885 million parameters, 77 tokens of 768."""
    nets = randomised(torch_karlo(320, **FULL)), randomised(text_proj(320), 1)
    lazy, about = karlo.canonical(both(nets), {}, {})
    rng = np.random.default_rng(5)
    texts = {
        "texts/states": rng.normal(size=(3, 77, 768)).astype(np.float32),
        "texts/mask": (np.arange(77) < np.array([[7], [12], [2]])).astype(np.float32),
        "texts/pooled": rng.normal(size=(3, 768)).astype(np.float32),
    }
    same_function(nets, made(lazy), about, texts, 64)


class _Shape:
    dtype = np.dtype(np.float32)

    def __init__(self, shape):
        self.shape = tuple(shape)


def test_the_full_size_has_exactly_the_published_names_and_shapes():
    with torch.device("meta"):
        theirs = torch_karlo(320, **FULL).state_dict()
        beside = text_proj(320).state_dict()
    named = {name: _Shape(tensor.shape) for name, tensor in theirs.items()}
    named |= {f"text_proj/{name}": _Shape(tensor.shape) for name, tensor in beside.items()}
    assert (len(theirs), len(beside)) == (716, 11)
    found, about = karlo.canonical(named, {}, {})
    assert sum(int(np.prod(lazy.shape)) for lazy in found.values()) == 885_439_686 + 7_878_400
    assert (about["context_dim"], about["clip_dim"], about["network"]["attention_order"]) == (1536, 768, "legacy")
    parts = karlo.diffusers(dict.fromkeys(found), about)
    for folder, true in (("decoder", theirs), ("text_proj", beside)):
        assert {n: lazy.shape for n, lazy in parts[folder][0].items()} == {n: tuple(t.shape) for n, t in true.items()}
    original = karlo.original(dict.fromkeys(found), about)
    shapes = {name: lazy.shape for name, lazy in original.items()}
    # As Karlo's code and diffusers' converter of its file have them.
    assert shapes["model.input_blocks.5.1.encoder_kv.weight"] == (1280, 1536, 1)
    assert shapes["model.output_blocks.3.2.in_layers.2.weight"] == (1280, 1280, 3, 3)
    assert shapes["model.text_seq_proj.1.weight"] == (1536,)
    assert shapes["model.clip_tok_proj.weight"] == (6144, 768)
    assert shapes["model.cf_param"] == (768,)
    stored = wrapped.find({f"state_dict.{name}": _Shape(shape) for name, shape in shapes.items()}, unet.ROOTS)
    again, facts = karlo.canonical(stored.arrays, {}, {})
    assert facts["network"] == about["network"]
    assert again.keys() == found.keys()


@pytest.fixture(scope="module")
def pipeline(nets, tmp_path_factory):
    """The folder of a whole pipeline."""
    folder = tmp_path_factory.mktemp("pipeline")
    nets[0].save_pretrained(folder / "decoder", max_shard_size="1MB")
    nets[1].save_pretrained(folder / "text_proj")
    return folder


def run(source, out, *flags):
    convert.main(["karlo-decoder", f"--source={source}", f"--out={out}", *flags])


def test_round_trip_is_the_identity(nets, pipeline, tmp_path, capsys):
    """Folders -> ours -> Karlo's names -> ours -> folders; heads one after the other by its names."""
    run(pipeline, tmp_path / "a.safetensors")
    assert "text tokens are masked" in capsys.readouterr().out
    run(tmp_path / "a.safetensors", tmp_path / "karlo.safetensors", "--to=karlo")
    old = load_file(tmp_path / "karlo.safetensors")
    kv = old["model.middle_block.1.encoder_kv.weight"][..., 0].numpy()
    for k, part in enumerate(("k", "v")):
        true = arrays(nets[0])[f"mid_block.attentions.0.add_{part}_proj.weight"]
        for head in range(2):
            first = (2 * head + k) * 64
            np.testing.assert_array_equal(kv[first : first + 64], true[head * 64 : head * 64 + 64])
    torch.save({"state_dict": old}, tmp_path / "karlo.ckpt")  # the file that Karlo's code loads
    run(tmp_path / "karlo.ckpt", tmp_path / "b.safetensors")
    a, b = (weights.load(tmp_path / f"{x}.safetensors", "karlo-decoder") for x in "ab")
    assert a.fingerprint == b.fingerprint
    run(tmp_path / "b.safetensors", tmp_path / "folder", "--to=diffusers")
    for name, net in (("decoder", nets[0]), ("text_proj", nets[1])):
        loaded = arrays(type(net).from_pretrained(tmp_path / "folder", subfolder=name))
        assert loaded.keys() == arrays(net).keys()
        for key, array in arrays(net).items():
            np.testing.assert_array_equal(loaded[key], array)
    scheduler_config = json.loads((tmp_path / "folder" / "decoder_scheduler" / "scheduler_config.json").read_text())
    assert scheduler_config["_class_name"] == "UnCLIPScheduler"


def test_files_that_are_not_a_decoder(pipeline, ours, nets, tmp_path):
    (tmp_path / "alone").mkdir()
    nets[0].save_pretrained(tmp_path / "alone")
    with pytest.raises(UserError, match="the folder text_proj is missing"):
        convert.convert_base("karlo-decoder", tmp_path / "alone", tmp_path / "out")
    convert.convert_base(
        "karlo-decoder", tmp_path / "alone", tmp_path / "with.safetensors", also=[pipeline / "text_proj"]
    )
    with pytest.raises(UserError, match="convert it as karlo-decoder"):
        convert.convert_base("adm", tmp_path / "alone", tmp_path / "out")
    with pytest.raises(UserError, match="no weights at"):
        convert.convert_base("karlo-decoder", pipeline, tmp_path / "out", text_encoder=tmp_path / "none")
    with pytest.raises(UserError, match="is no text encoder of CLIP"):
        convert.convert_base("karlo-decoder", pipeline, tmp_path / "out", text_encoder=pipeline / "text_proj")
    assert not (tmp_path / "out").exists()


def test_names_of_classes_are_prompts():
    assert karlo.prompt("ApplyEyeMakeup") == "apply eye makeup"
    assert [karlo.prompt(name) for name in ("TaiChi", "YoYo", "Archery", "CleanAndJerk")] == [
        "tai chi", "yo yo", "archery", "clean and jerk",
    ]  # fmt: skip
    assert len(set(map(karlo.prompt, CLASSES))) == len(CLASSES) == 101


def vocabulary(folder):
    """A tokenizer of CLIP's kind that knows letters only: vocab.json and merges.txt."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    prompt = [*letters, *(f"{letter}</w>" for letter in letters), START, END]
    (folder / "vocab.json").write_text(json.dumps({word: k for k, word in enumerate(prompt)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return len(prompt)


@pytest.mark.slow
def test_full_size_converts_within_its_memory_and_two_minutes(tmp_path):
    """3.57 GB of random weights, a round trip by the command; peak memory at most 1.3 times the file."""
    with torch.device("meta"):
        shapes = {f"model.{n}": s for n, s in _original(torch_karlo(320, **FULL), text_proj(320)).items()}
    block = np.random.default_rng(0).normal(size=1 << 24).astype(np.float32)
    state = {name: torch.from_numpy(np.resize(block, shape).copy()) for name, shape in shapes.items()}  # not views
    torch.save({"state_dict": state}, tmp_path / "k.ckpt")
    size = (tmp_path / "k.ckpt").stat().st_size
    assert size > 4 * 893_000_000
    for source, out, flags in (
        ("k.ckpt", "k.safetensors", ()),
        ("k.safetensors", "back.safetensors", ("--to=karlo",)),
    ):
        began = time.monotonic()
        peak = _peak(tmp_path / source, tmp_path / out, *flags)
        assert peak < 1.3 * size
        assert time.monotonic() - began < 120
    last, _ = safetensors_file.read(tmp_path / "back.safetensors")
    assert last.keys() == state.keys()
    for name, tensor in state.items():
        np.testing.assert_array_equal(last[name], tensor.numpy())


def _original(unet, beside):
    """{name: shape} of Karlo's original file."""
    named = {name: _Shape(tensor.shape) for name, tensor in unet.state_dict().items()}
    named |= {f"text_proj/{name}": _Shape(tensor.shape) for name, tensor in beside.state_dict().items()}
    found, about = karlo.canonical(named, {}, {})
    made = karlo.original(dict.fromkeys(found), about)
    return {name.removeprefix("model."): lazy.shape for name, lazy in made.items()}


def _peak(source, out, *flags):
    """Bytes of memory that a conversion by the command holds at most; `ru_maxrss` would be its parent's, if larger."""
    code = (
        "import re, sys\nfrom vf.pretrained import convert\nconvert.main(sys.argv[1:])\n"
        "print('peak', re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])"
    )
    command = [sys.executable, "-c", code, "karlo-decoder", f"--source={source}", f"--out={out}", *flags]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    return 1024 * int(found.stdout.split("peak ")[1])


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("text_encoder")
    count = vocabulary(folder)
    config = transformers.CLIPTextConfig(
        hidden_size=CLIP, intermediate_size=160, num_hidden_layers=2, num_attention_heads=CLIP // 64,
        vocab_size=count, max_position_embeddings=32, projection_dim=CLIP, bos_token_id=count - 2,
        eos_token_id=count - 1, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    net = transformers.CLIPTextModelWithProjection(config).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, 0.1 if parameter.ndim == 1 else 0, 0.1)
    net.save_pretrained(folder)
    return net, folder


def test_texts_are_encoded_like_transformers(encoder, pipeline, tmp_path, capsys):
    net, folder = encoder
    run(pipeline, tmp_path / "a.safetensors", f"--text-encoder={folder}")
    assert "text tokens are masked" not in capsys.readouterr().out
    found = weights.load(tmp_path / "a.safetensors", "karlo-decoder")
    assert found.about["texts"][:3] == ["apply eye makeup", "apply lipstick", "archery"]
    assert found.about["texts"][-1] == ""
    ids = json.loads((folder / "vocab.json").read_text())
    for row, text in ((2, "archery"), (101, ""), (0, "apply eye makeup")):
        pieces = [ids[c] for word in text.split() for c in [*word[:-1], f"{word[-1]}</w>"]]
        tokens = [ids[START], *pieces, ids[END]]
        padded = torch.tensor([tokens + [0] * (32 - len(tokens))])  # Karlo pads by 0
        with torch.no_grad():
            true = net(padded)
        assert found.arrays["texts/mask"][row].sum() == len(tokens)
        states = true.last_hidden_state[0, : len(tokens)].numpy()
        np.testing.assert_allclose(found.arrays["texts/states"][row, : len(tokens)], states, atol=1e-4)
        np.testing.assert_allclose(found.arrays["texts/pooled"][row], true.text_embeds[0].numpy(), atol=1e-4)
