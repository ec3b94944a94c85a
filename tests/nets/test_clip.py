"""CLIP against Hugging Face's, frames against Pillow; two scores."""

import functools

import jax
import numpy as np
import PIL.Image
import pytest
from flax.traverse_util import flatten_dict

from vf.nets import clip
from vf.nets.clip import clip_image, clip_text, clipsim, frame_consistency
from vf.nets.vit import CLIP_B32, Config
from vf.pretrained import convert, weights
from vf.pretrained.clip import canonical
from vf.pretrained.weights import Weights
from vf.scores.networks import frame_network
from vf.types import UserError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZE, VOCABULARY, CONTEXT, DIM = 64, 300, 20, 32


@functools.cache
def pair(act: str = "quick_gelu", heads: int = 2):
    """A small CLIP of Hugging Face's and its arrays in our layout, with the two configurations."""
    torch.manual_seed(0)
    text = transformers.CLIPTextConfig(
        hidden_size=128, intermediate_size=160, num_hidden_layers=2, num_attention_heads=heads, vocab_size=VOCABULARY,
        max_position_embeddings=CONTEXT, bos_token_id=VOCABULARY - 2, eos_token_id=VOCABULARY - 1, projection_dim=DIM,
        hidden_act=act,
    )  # fmt: skip
    vision = transformers.CLIPVisionConfig(
        hidden_size=192, intermediate_size=250, num_hidden_layers=3, num_attention_heads=3, image_size=SIZE,
        patch_size=16, projection_dim=DIM, hidden_act=act,
    )  # fmt: skip
    net = transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=DIM)
    ).eval()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.ndim == 1 and "norm" in name and name.endswith("weight"):
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(0, 0.1)
    arrays, about = canonical({name: tensor.numpy() for name, tensor in net.state_dict().items()}, net.config.to_dict())
    return net, Weights("clip", arrays, "", {}).tree(), Config(**about["vision"]), clip.TextConfig(**about["language"])


def clips(n: int, frames: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, frames, height, width, 3), np.uint8)


def prepared(frame: np.ndarray, size: int) -> np.ndarray:
    """OpenAI's preprocessing by Pillow: u8 [size size 3]."""
    height, width = frame.shape[:2]
    short = min(height, width)
    height, width = (
        size if height == short else int(size * height / short),
        size if width == short else int(size * width / short),
    )
    picture = PIL.Image.fromarray(frame).resize((width, height), PIL.Image.Resampling.BICUBIC)
    top, left = round((height - size) / 2), round((width - size) / 2)
    return np.asarray(picture.crop((left, top, left + size, top + size)))


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def relative(found, true) -> float:
    return float(abs(np.asarray(found) - true).max() / abs(true).max())


@pytest.mark.parametrize(("height", "width"), [(240, 320), (64, 70), (256, 256), (500, 210), (32, 43)])
def test_frames_are_prepared_as_pillow_does(height, width):
    size = 224 if height > 50 else SIZE
    frames = clips(1, 2, height, width)[0]
    frames[1] = np.arange(width)[:, None] * 255 // width  # smooth, beside noise
    found = jax.jit(functools.partial(clip.preprocess, size=size))(frames)
    found = (np.asarray(found) * np.array(clip.STD) + np.array(clip.MEAN)) * 255
    true = np.stack([prepared(frame, size) for frame in frames])
    np.testing.assert_allclose(found, true, atol=1e-3)  # not a bit of a pixel differs


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_images(act):
    net, params, vision, language = pair(act)
    network = clip_image(params, "0123456789ab", frames=3, vision=vision, language=language)
    x = clips(2, 3, 96, 70)
    frames = np.stack([prepared(frame, SIZE) for frame in x.reshape(-1, *x.shape[2:])])
    y = (torch.as_tensor(frames).float() / 255 - torch.tensor(clip.MEAN)) / torch.tensor(clip.STD)
    with torch.no_grad():
        true = net.get_image_features(y.permute(0, 3, 1, 2)).pooler_output.numpy()
    found = np.asarray(jax.jit(network.apply)(network.params, x))
    assert found.shape == (2, network.dim)
    assert relative(found.reshape(6, DIM), unit(true)) < 1e-5
    assert network.protocol["frames"] == 3
    assert network.protocol["network"].endswith({"quick_gelu": "numbers each", "gelu": "numbers each, gelu"}[act])
    with pytest.raises(ValueError, match="clips of 3 frames"):
        network.apply(params, x[:, :2])


@pytest.mark.parametrize("padding", [0, VOCABULARY - 1])
def test_captions(padding):
    """Whatever pads: a token sees those before it only, and the first end is the one that counts."""
    net, params, _, language = pair()
    rng = np.random.default_rng(0)
    tokens = np.full((4, CONTEXT), padding, np.int32)
    for row, length in zip(tokens, (2, 5, 11, CONTEXT), strict=True):
        row[:length] = [VOCABULARY - 2, *rng.integers(0, VOCABULARY - 2, length - 2), VOCABULARY - 1]
    with torch.no_grad():
        true = net.get_text_features(torch.as_tensor(tokens).long()).pooler_output.numpy()
    encode = jax.jit(functools.partial(clip_text, language=language))
    found = encode(params, tokens)
    assert relative(found, unit(true)) < 1e-5
    short = encode(params, tokens[:2, :5])
    np.testing.assert_allclose(short, found[:2], atol=1e-6)
    with pytest.raises(ValueError, match="at most 20 tokens"):
        clip_text(params, np.zeros((1, 21), np.int32), language=language)


def test_captions_of_another_gelu_in_other_heads():
    """As those of LAION's CLIPs, whose config says it."""
    net, params, _, language = pair("gelu", 4)
    tokens = np.tile(np.arange(VOCABULARY - CONTEXT, VOCABULARY, dtype=np.int32), (2, 1))
    with torch.no_grad():
        true = net.get_text_features(torch.as_tensor(tokens).long()).pooler_output.numpy()
    assert relative(clip_text(params, tokens, language=language), unit(true)) < 1e-5


# ---- folders of one encoder, in the shapes of the larger models: patches of 14, the text as wide as its embedding

L14 = (
    {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
    {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    {"hidden_act": "quick_gelu", "projection_dim": 768},
)
H14 = (
    {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16},
    {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
    {"hidden_act": "gelu", "projection_dim": 1024},
)
SMALL_L14 = (
    {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2},
    {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 1},
    {"hidden_act": "quick_gelu", "projection_dim": 64},
)
SMALL_H14 = (
    {"hidden_size": 160, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2},  # heads of 80
    {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
    {"hidden_act": "gelu", "projection_dim": 64},
)


def one_encoder_each(vision, text, both, folder, size):
    """Folders of the two encoders of random weights give what transformers gives, states of all tokens included."""
    torch.manual_seed(0)
    vision_config = transformers.CLIPVisionConfig(**vision, **both, image_size=size, patch_size=14)
    text_config = transformers.CLIPTextConfig(
        **text, **both, vocab_size=VOCABULARY, max_position_embeddings=CONTEXT, bos_token_id=VOCABULARY - 2,
        eos_token_id=VOCABULARY - 1,
    )  # fmt: skip
    rng = np.random.default_rng(0)

    def saved(net, name):
        for parameter in net.parameters():
            spread = 0.1 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            torch.nn.init.normal_(parameter, 1 if parameter.ndim == 1 else 0, spread)
        net.eval().save_pretrained(folder / name)
        convert.main(["clip", f"--source={folder / name}", f"--out={folder / name}.safetensors"])
        return weights.load(folder / f"{name}.safetensors", "clip")

    net = transformers.CLIPVisionModelWithProjection(vision_config)
    converted = saved(net, "image")
    x = rng.normal(size=(2, size, size, 3)).astype(np.float32)
    with torch.no_grad():
        true = net(torch.as_tensor(x).permute(0, 3, 1, 2)).image_embeds.numpy()
    config = Config(**converted.about["vision"])
    assert (config.act, config.heads, config.size) == (both["hidden_act"], vision["num_attention_heads"], size)
    module = clip.Image(config, converted.about["language"]["dim"], jax.lax.Precision.HIGHEST)
    assert relative(jax.jit(module.apply)({"params": converted.tree()["image"]}, x), true) < 1e-4
    del net
    network = frame_network(f"clip:{folder / 'image.safetensors'}")
    assert (network.dim, np.isfinite(network.apply(network.params, clips(1, 1, 20, 30))).all()) == (true.shape[1], True)

    net = transformers.CLIPTextModelWithProjection(text_config)
    converted = saved(net, "text")
    tokens = rng.integers(0, VOCABULARY - 2, (2, CONTEXT))
    tokens[0, 7:], tokens[1, -1] = VOCABULARY - 1, VOCABULARY - 1
    with torch.no_grad():
        true = net(torch.as_tensor(tokens))
    language = clip.TextConfig(**converted.about["language"])
    assert (language.act, language.heads) == (both["hidden_act"], text["num_attention_heads"])
    states, pooled = jax.jit(clip.Text(language, states=True).apply)({"params": converted.tree()["text"]}, tokens)
    assert relative(states, true.last_hidden_state.numpy()) < 1e-4
    assert relative(pooled, true.text_embeds.numpy()) < 1e-4
    with pytest.raises(UserError, match="holds CLIP's text encoder alone, where its image encoder is needed"):
        frame_network(f"clip:{folder / 'text.safetensors'}")


@pytest.mark.parametrize("sizes", [SMALL_L14, SMALL_H14], ids=["L/14", "H/14"])
def test_folders_of_one_encoder(sizes, tmp_path):
    one_encoder_each(*sizes, tmp_path, 28)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [L14, H14], ids=["L/14", "H/14"])
def test_folders_of_one_encoder_at_full_width(sizes, tmp_path):
    one_encoder_each(*sizes, tmp_path, 224)


def test_full_size_is_vit_b32():
    made, shapes = jax.eval_shape(
        clip.CLIP().init_with_output, jax.random.key(0), jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32),
        jax.ShapeDtypeStruct((1, 77), np.int32),
    )  # fmt: skip
    assert [x.shape for x in made] == [(1, 512), (1, 512)]
    ours = flatten_dict(shapes["params"], sep="/")
    assert sum(int(np.prod(leaf.shape)) for leaf in ours.values()) == 151_277_313  # OpenAI's ViT-B/32
    assert ours["image/embed/positions"].shape == (50, 768)
    assert ours["text/blocks/qkv/kernel"].shape == (12, 512, 1536)
    assert CLIP_B32.grid == (1, 7, 7)


# ---- the scores


def test_clipsim_is_the_mean_cosine():
    rng = np.random.default_rng(0)
    image, text = rng.normal(size=(5, 7, 16)), rng.normal(size=(5, 16))
    cosine = np.array(
        [[u @ v / np.linalg.norm(u) / np.linalg.norm(v) for u in us] for us, v in zip(image, text, strict=True)]
    )
    np.testing.assert_allclose(clipsim(image, text), cosine.mean(1), atol=1e-12)
    np.testing.assert_allclose(clipsim(3 * image, text, scale=100), 100 * cosine.mean(1), atol=1e-12)
    scored = clipsim(image, text, scale=2.5, floor=0)
    np.testing.assert_allclose(scored, 2.5 * np.maximum(cosine, 0).mean(1), atol=1e-12)
    assert (scored > 2.5 * np.maximum(cosine.mean(1), 0)).any()  # frames are clipped, not means
    same = np.repeat(text[:, None], 4, 1)
    np.testing.assert_allclose(clipsim(same, text), 1)


def test_frame_consistency_is_that_of_neighbours():
    rng = np.random.default_rng(0)
    u = unit(rng.normal(size=(3, 6, 16)))
    np.testing.assert_allclose(frame_consistency(u), [np.diag(x @ x.T, 1).mean() for x in u], atol=1e-12)
    still = np.repeat(u[:, :1], 6, 1)
    np.testing.assert_allclose(frame_consistency(still), 1)
    turning = np.stack([np.cos(np.arange(5) * 0.3), np.sin(np.arange(5) * 0.3)], -1)[None]
    np.testing.assert_allclose(frame_consistency(turning), np.cos(0.3))


@pytest.mark.parametrize(
    ("image", "text"),
    [((2, 3), (2, 3)), ((2, 3, 4), (3, 4)), ((2, 3, 4), (2, 5)), ((0, 3, 4), (0, 4)), ((2, 0, 4), (2, 4))],
)
@pytest.mark.usefixtures("unchecked")
def test_embeddings_of_other_shapes_are_refused(image, text):
    with pytest.raises(ValueError, match="expected embeddings"):
        clipsim(np.ones(image), np.ones(text))


def test_embeddings_without_direction_are_refused():
    image, text = np.ones((2, 3, 4)), np.ones((2, 4))
    for bad in (0, np.nan):
        broken = image.copy()
        broken[1, 2] = bad
        with pytest.raises(ValueError, match="of frames other than 0"):
            clipsim(broken, text)
        with pytest.raises(ValueError, match="of frames other than 0"):
            frame_consistency(broken)
    with pytest.raises(ValueError, match="of captions other than 0"):
        clipsim(image, 0 * text)
    with pytest.raises(ValueError, match="two frames or more"):
        frame_consistency(image[:, :1])
