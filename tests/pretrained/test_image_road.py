"""The whole image road, text to picture: the same picture as diffusers' pipeline of Karlo, with the same noise."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.nets.test_tokenizer import MERGES, vocabulary
from tests.pretrained.torch_unets import SMALL, arrays, channels_first, karlo, made, randomised, superres, text_proj
from vf.diffusion import noise, schedule, solvers
from vf.diffusion.guidance import Guidance
from vf.models.model import TEXT
from vf.models.one_network import OneNetwork
from vf.models.prior import Prior
from vf.models.superres import TwoNetworks
from vf.nets.clip import Text
from vf.pretrained import adm, clip, karlo_superres, prior, weights
from vf.pretrained import karlo as karlo_decoder

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
DIM, LENGTH, CONTEXT, SMALL_SIDE, LARGE_SIDE = 64, 12, 96, 16, 32
STEPS = {"prior": 4, "decoder": 5, "super_res": 3}
SCALES = {"prior": 4.0, "decoder": 8.0}
PROMPTS = ["the cat", "a running dog in the cat"]
IMAGE = {"schedule": schedule.cosine(), "base_frame": 0, "prediction": "eps", "loss": "eps"}


def scheduler(**fields):
    """In float32 its 1 - alphas_cumprod[0] is off by 5e-4 of itself, and so is its last step; the maths is compared."""
    found = diffusers.UnCLIPScheduler(**fields)
    found.betas = found.betas.double()
    found.alphas = 1 - found.betas
    found.alphas_cumprod = found.alphas.cumprod(0)
    return found


@pytest.fixture(scope="module")
def pipeline():
    """Karlo's, of small networks with random weights."""
    from diffusers.pipelines.deprecated.unclip.pipeline_unclip import UnCLIPPipeline

    words = vocabulary()
    text = transformers.CLIPTextConfig(
        vocab_size=len(words), hidden_size=DIM, intermediate_size=2 * DIM, num_hidden_layers=2, num_attention_heads=1,
        max_position_embeddings=LENGTH, projection_dim=DIM, hidden_act="quick_gelu", eos_token_id=len(words) - 1,
        bos_token_id=len(words) - 2,
    )  # fmt: skip
    decoder, first, last = karlo(**SMALL, context=CONTEXT), *(superres(32, (1, 2), 1) for _ in range(2))
    decoder.register_to_config(sample_size=SMALL_SIDE)
    for net in (first, last):
        net.register_to_config(sample_size=LARGE_SIDE)
    sizes = {"num_attention_heads": 1, "attention_head_dim": 64, "num_layers": 2, "embedding_dim": DIM}
    nets = [
        diffusers.PriorTransformer(**sizes, num_embeddings=LENGTH), decoder, first, last,
        text_proj(SMALL["width"], CONTEXT, DIM), transformers.CLIPTextModelWithProjection(text),
    ]  # fmt: skip
    a_prior, decoder, first, last, projection, encoder = (randomised(net, k) for k, net in enumerate(nets))
    with torch.no_grad():
        a_prior.clip_std.uniform_(0.5, 1.5)
        for net in (
            decoder,
            first,
            last,
        ):  # predictions about as large as noise is, so that steps do not blow rounding up
            net.conv_out.weight *= 0.1
    return UnCLIPPipeline(
        prior=a_prior, decoder=decoder, text_encoder=encoder, text_proj=projection, super_res_first=first,
        super_res_last=last,
        tokenizer=transformers.CLIPTokenizer(vocab=words, merges=MERGES, model_max_length=LENGTH),
        prior_scheduler=scheduler(variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=5.0),
        decoder_scheduler=scheduler(variance_type="learned_range", prediction_type="epsilon", clip_sample_range=1.0),
        super_res_scheduler=scheduler(variance_type="fixed_small_log", clip_sample_range=1.0),
    )  # fmt: skip


@pytest.fixture(scope="module")
def noises():
    """By stage: the noise that it starts from, then those of its steps, each [rows, 1, h, w, c]."""
    shapes = {"prior": (1, 1, DIM), "decoder": (SMALL_SIDE, SMALL_SIDE, 3), "super_res": (LARGE_SIDE, LARGE_SIDE, 3)}
    random = np.random.default_rng(0)
    return {
        stage: random.normal(size=(1 + STEPS[stage], len(PROMPTS), 1, *shape)).astype(np.float32)
        for stage, shape in shapes.items()
    }


def theirs(pipeline, noises):
    """Pictures [rows h w 3] in [0, 1]."""

    def laid_out(stage, one):
        return torch.from_numpy(one.reshape(len(one), -1)) if stage == "prior" else channels_first(one[:, 0])

    drawn = iter([laid_out(stage, one) for stage in STEPS for one in noises[stage][1:-1]])  # the last step has none
    pipeline.set_progress_bar_config(disable=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[diffusers.UnCLIPScheduler.__module__], "randn_tensor", lambda *_, **__: next(drawn))
        found = pipeline(
            PROMPTS, output_type="np", **{f"{stage}_num_inference_steps": count for stage, count in STEPS.items()},
            **{f"{stage}_latents": laid_out(stage, noises[stage][0]) for stage in STEPS},
            **{f"{stage}_guidance_scale": scale for stage, scale in SCALES.items()},
        )  # fmt: skip
    assert next(drawn, None) is None
    return found.images


def walk(denoise, noises, steps, bound):
    """Ancestral sampling with these noises."""
    grid = schedule.time_grid(steps, 1000)
    numbered = jnp.asarray(noises[1:])
    return solvers.solve(
        denoise, jnp.asarray(noises[0]), grid, schedule.cosine(), solver=solvers.DDIM(1.0), clip_x_0=bound,
        noise=lambda t: numbered[jnp.argmax(jnp.asarray(grid) == t)],
    )  # fmt: skip


def ours(pipeline, noises):
    params, language = clip.text(arrays(pipeline.text_encoder))
    tokens = np.asarray(pipeline.tokenizer([*PROMPTS, ""], padding="max_length", max_length=LENGTH).input_ids, np.int32)
    states, pooled = jax.jit(lambda p: Text(language, states=True).apply({"params": p}, tokens))(
        weights.Weights("", params, "", {}).tree()
    )
    mask = np.arange(LENGTH) <= tokens.argmax(1)[:, None]
    texts = dict(zip(TEXT, (states[:-1], mask[:-1], pooled[:-1]), strict=True))
    empty = {"states": states[-1:], "mask": mask[-1:].astype(np.float32), "pooled": pooled[-1:]}
    stored = {f"texts/{name}": np.asarray(value, np.float32) for name, value in empty.items()}

    def tree(lazy, **more):
        return weights.Weights("", {**made(lazy), **more}, "", {}).tree()

    reads = {"text_shape": (LENGTH, DIM, DIM)}
    lazy, about = prior.canonical(arrays(pipeline.prior), dict(pipeline.prior.config), {})
    a_prior = Prior(
        **IMAGE | {"prediction": "x_0", "loss": "x_0"}, net=prior.net(about | {"texts": [""]}),
        prior=noise.Independent(), shape=(1, 1, 1, DIM), readers=("prior",), **reads,
    )  # fmt: skip
    params = {"prior": tree(lazy, **stored)}
    embeddings = jax.jit(
        lambda p: a_prior.embeddings(
            p, walk(a_prior.denoiser(p, texts, Guidance(SCALES["prior"])), noises["prior"], STEPS["prior"], 5.0)
        )
    )(params)

    lazy, about = karlo_decoder.canonical(arrays(pipeline.decoder) | arrays(pipeline.text_proj, "text_proj/"), {}, {})
    net = karlo_decoder.net(about | {"text_length": LENGTH}, texts=1, embedding=True, text=True)
    decoder = OneNetwork(
        **IMAGE, net=net, prior=noise.Independent(), shape=(1, SMALL_SIDE, SMALL_SIDE, 3), embedding_dim=DIM,
        readers=("base",), learned_variance=True, **reads,
    )  # fmt: skip
    condition = {**texts, "embedding": embeddings}
    small = jax.jit(
        lambda p, given: walk(
            decoder.denoiser(p, given, Guidance(SCALES["decoder"])), noises["decoder"], STEPS["decoder"], 1.0
        )
    )({"base": tree(lazy, **stored)}, condition)

    pair = [
        karlo_superres.canonical(arrays(net), dict(net.config), {})
        for net in (pipeline.super_res_first, pipeline.super_res_last)
    ]
    larger = TwoNetworks(
        **IMAGE, net=adm.net(pair[0][1]), last=adm.net(pair[1][1]), prior=noise.Independent(),
        shape=(1, LARGE_SIDE, LARGE_SIDE, 3), low_size=SMALL_SIDE,
    )  # fmt: skip
    params = {name: tree(lazy) for name, (lazy, _) in zip(("base", "last"), pair, strict=True)}
    large = jax.jit(
        lambda p, low: walk(larger.denoiser(p, {"low": low}), noises["super_res"], STEPS["super_res"], 1.0)
    )(params, jnp.clip(small, -1, 1))
    return np.clip(np.asarray(large[:, 0]) / 2 + 0.5, 0, 1)


def test_a_text_becomes_the_picture_that_diffusers_makes(pipeline, noises):
    true, found = theirs(pipeline, noises), ours(pipeline, noises)
    assert true.shape == (len(PROMPTS), LARGE_SIDE, LARGE_SIDE, 3)
    assert true.std() > 0.05  # it shows something
    assert np.abs(true[0] - true[1]).max() > 0.1
    np.testing.assert_allclose(found, true, atol=1e-3)
