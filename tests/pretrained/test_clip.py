"""CLIP from OpenAI's archive and from Hugging Face's folder: one set of arrays; other networks are refused."""

import dataclasses
import json
import warnings

import numpy as np
import pytest

from vf.nets.clip import TextConfig
from vf.nets.vit import CLIP_B32, Config
from vf.pretrained import clip, convert, files, weights

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

VISION = dataclasses.replace(CLIP_B32, width=128, depth=2, heads=2, mlp=200, patch=8, size=32)
LANGUAGE = TextConfig(width=64, depth=3, heads=1, mlp=100, context=12, vocabulary=60, dim=24)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    text = transformers.CLIPTextConfig(
        hidden_size=64, intermediate_size=100, num_hidden_layers=3, num_attention_heads=1, vocab_size=60,
        max_position_embeddings=12, bos_token_id=58, eos_token_id=59,
    )  # fmt: skip
    vision = transformers.CLIPVisionConfig(
        hidden_size=128, intermediate_size=200, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    made = transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=24)
    )
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0, 0.1)
            parameter.copy_(parameter.half())  # OpenAI's archives have half precision
    return made


@pytest.fixture(scope="module")
def state(net):
    return {name: tensor.numpy() for name, tensor in net.state_dict().items()}


@pytest.fixture(scope="module")
def true(state):
    arrays, about = clip.canonical(state)
    assert about["layout"] == "hugging_face"
    assert (Config(**about["vision"]), TextConfig(**about["language"])) == (VISION, LANGUAGE)
    assert not about["official"]
    return arrays


def equal(found, true):
    assert found.keys() == true.keys()
    for name, array in true.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def openai_names(state) -> dict[str, np.ndarray]:
    """As OpenAI's `state_dict` names them, written out here by hand."""
    layer = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
             "self_attn.out_proj": "attn.out_proj"}  # fmt: skip
    made = {
        "visual.class_embedding": state["vision_model.embeddings.class_embedding"],
        "visual.positional_embedding": state["vision_model.embeddings.position_embedding.weight"],
        "visual.proj": state["visual_projection.weight"].T,
        "visual.conv1.weight": state["vision_model.embeddings.patch_embedding.weight"],
        "token_embedding.weight": state["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": state["text_model.embeddings.position_embedding.weight"],
        "text_projection": state["text_projection.weight"].T,
        "logit_scale": state["logit_scale"],
    }
    for kind in ("weight", "bias"):
        made[f"visual.ln_pre.{kind}"] = state[f"vision_model.pre_layrnorm.{kind}"]
        made[f"visual.ln_post.{kind}"] = state[f"vision_model.post_layernorm.{kind}"]
        made[f"ln_final.{kind}"] = state[f"text_model.final_layer_norm.{kind}"]
        for theirs, hugging_face, depth in (
            ("visual.transformer", "vision_model", 2),
            ("transformer", "text_model", 3),
        ):
            for k in range(depth):
                source, target = f"{hugging_face}.encoder.layers.{k}", f"{theirs}.resblocks.{k}"
                parts = [state[f"{source}.self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
                made[f"{target}.attn.in_proj_{kind}"] = np.concatenate(parts)
                made |= {f"{target}.{b}.{kind}": state[f"{source}.{a}.{kind}"] for a, b in layer.items()}
    return made


class Part(torch.nn.Module):
    """A module of given parameters and parts, which PyTorch can script."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def scripted(arrays, path):
    root = Part()
    for name, array in arrays.items():
        *parts, last = name.split(".")
        place = root
        for part in parts:
            if not hasattr(place, part):
                place.add_module(part, Part())
            place = getattr(place, part)
        place.register_parameter(last, torch.nn.Parameter(torch.tensor(array).half()))
    for name, value in (("input_resolution", 32), ("context_length", 12), ("vocab_size", 60)):
        root.register_buffer(name, torch.tensor(value))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch no longer recommends scripts
        torch.jit.script(root).save(str(path))


def test_openai_archive(state, true, tmp_path):
    scripted(openai_names(state), tmp_path / "ViT-B-32.pt")
    source = files.read(tmp_path / "ViT-B-32.pt")
    assert source.format == "torchscript"
    found, about = clip.canonical(source.arrays)
    equal(found, true)
    assert (about["layout"], about["act_from"]) == ("openai", "archive")
    assert (Config(**about["vision"]), TextConfig(**about["language"])) == (VISION, LANGUAGE)


def test_openai_state_dict(state, true, tmp_path):
    torch.save({name: torch.tensor(array) for name, array in openai_names(state).items()}, tmp_path / "state.pt")
    equal(clip.canonical(files.read(tmp_path / "state.pt").arrays)[0], true)


def test_hugging_face_folder(net, true, tmp_path):
    net.save_pretrained(tmp_path)
    source = files.read(tmp_path)
    assert source.format == "safetensors folder"
    equal(clip.canonical(source.arrays)[0], true)


def test_what_no_array_says_is_read_from_the_folder_or_assumed_and_told(net, tmp_path, capsys):
    """The GELU and the number of heads: by config.json, by OpenCLIP's, by a flag; an archive of OpenAI's needs none."""
    net.save_pretrained(tmp_path / "hf")
    file = tmp_path / "hf" / "config.json"
    plain = json.loads(file.read_text())
    (tmp_path / "bare.safetensors").write_bytes((tmp_path / "hf" / "model.safetensors").read_bytes())

    def converted(source, *flags) -> tuple[dict, str]:
        (tmp_path / "c.safetensors").unlink(missing_ok=True)
        convert.main(["clip", f"--source={tmp_path / source}", f"--out={tmp_path / 'c.safetensors'}", *flags])
        return dict(weights.load(tmp_path / "c.safetensors", "clip").about), capsys.readouterr().out

    def edited(vision: dict, text: dict) -> None:
        made = {"vision_config": plain["vision_config"] | vision, "text_config": plain["text_config"] | text}
        file.write_text(json.dumps(plain | made))

    edited({"hidden_act": "gelu", "num_attention_heads": 4}, {"hidden_act": "gelu", "layer_norm_eps": 1e-6})
    for source in ("hf", "hf/model.safetensors"):
        about, told = converted(source)
        assert (about["vision"]["act"], about["vision"]["heads"], about["vision"]["eps"]) == ("gelu", 4, 1e-5)
        assert (about["language"]["act"], about["language"]["heads"], about["language"]["eps"]) == ("gelu", 1, 1e-6)
        assert (about["act_from"], about["official"], "assumed" in told) == ("config", False, False)
        assert "OpenAI" not in about["licence"]
    about, told = converted("bare.safetensors")
    assert (about["vision"]["act"], about["act_from"]) == ("quick_gelu", "")
    assert "assumed the GELU of OpenAI's CLIPs, quick_gelu, as no file says it" in told
    about, told = converted("bare.safetensors", "--assume=act=gelu")
    assert (about["vision"]["act"], about["act_from"], "assumed" in told) == ("gelu", "flag", False)
    edited({"hidden_act": "relu"}, {})
    with pytest.raises(SystemExit, match="2"):
        converted("hf")
    assert "its activation is relu, where quick_gelu and gelu are known here" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        converted("hf", "--assume=head_dim=3")
    assert "--assume=head_dim has no use for clip" in capsys.readouterr().err


def test_open_clip_s_config(state):
    about = clip.canonical(state, {"model_cfg": {"vision_cfg": {"width": 128}, "text_cfg": {"heads": 4}}})[1]
    assert (about["vision"]["act"], about["language"]["act"], about["language"]["heads"]) == ("gelu", "gelu", 4)
    quick = {"quick_gelu": True, "vision_cfg": {"width": 128, "head_width": 32}, "text_cfg": {}}
    about = clip.canonical(state, {"model_cfg": quick})[1]
    assert (about["vision"]["act"], about["vision"]["heads"], about["act_from"]) == ("quick_gelu", 4, "config")


def test_hugging_face_of_older_times(state, true):
    """It stored the numbers of positions as well."""
    older = {f"{kind}_model.embeddings.position_ids": np.arange(12)[None] for kind in ("text", "vision")}
    equal(clip.canonical(state | older)[0], true)


def test_full_size_tables_are_complete(net):
    """Names of both layouts at full size, against Hugging Face's network, without its memory."""
    with torch.device("meta"):
        full = transformers.CLIPModel(transformers.CLIPConfig())  # its defaults are ViT-B/32
    theirs = {name: tuple(tensor.shape) for name, tensor in full.state_dict().items()}
    assert sum(int(np.prod(size)) for size in theirs.values()) == 151_277_313
    joined = {name.replace(".q_proj.", ".qkv.") for name in theirs if ".k_proj." not in name and ".v_proj." not in name}
    table = clip.hugging_face(CLIP_B32, TextConfig())
    assert {row.name for row in table.values()} == joined
    assert clip.openai(CLIP_B32, TextConfig()).keys() == table.keys()


def test_other_files_are_refused(state):
    openai = openai_names(state)

    def without(arrays, part):
        return {name: array for name, array in arrays.items() if part not in name}

    for bad, message in (
        ({"a": np.ones(3)}, "neither OpenAI's names nor Hugging Face's"),
        (without(openai, "visual.class_embedding"), "no vision transformer"),  # ResNets have conv1 as well
        (without(state, "text_model"), r"missing: text_model\.embeddings\.token_embedding"),
        (without(state, "layers.1.self_attn.v_proj.bias"), r"missing: .*layers\.1\.self_attn\.v_proj\.bias"),
        (without(openai, "ln_final"), r"2 missing: ln_final"),
        (without(openai, "resblocks.0.attn.in_proj_bias"), r"2 missing: visual.*in_proj\.bias"),
        (openai | {"visual.attnpool.k_proj.weight": np.ones(3)}, "not of this network: visual.attnpool"),
        (openai | {"visual.ln_post.weight": np.ones(7)}, r"visual\.ln_post\.weight is \[7\]"),
        (state | {"visual_projection.weight": np.ones((24, 9))}, r"visual_projection\.weight is \[9, 24\]"),
    ):
        with pytest.raises(ValueError, match=message):
            clip.canonical(bad)
