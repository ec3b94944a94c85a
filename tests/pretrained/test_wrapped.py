"""A network is found under whatever training code puts around it, and of several copies the average is taken."""

import re

import numpy as np
import pytest

from vf.pretrained.wrapped import find, is_average
from vf.types import UserError

ROOTS = ("in.0.weight", "first.weight")
LAYERS = ("in.0.weight", "in.0.bias", "middle.proj.weight", "out.bias")


def network(prefix: str = "", value: float = 0.0) -> dict[str, np.ndarray]:
    return {prefix + name: np.full(2, value + k) for k, name in enumerate(LAYERS)}


def check(found, value: float) -> None:
    assert found.arrays.keys() == set(LAYERS)
    for k, name in enumerate(LAYERS):
        np.testing.assert_array_equal(found.arrays[name], value + k)


PREFIXES = (
    "", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod._orig_mod.module.module.", "state_dict.module.",
    "model.diffusion_model.", "state_dict.model.diffusion_model._orig_mod.", "_fsdp_wrapped_module.", "ema.",
    "anything.at.all.",
)  # fmt: skip


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_network_under_any_prefix(prefix):
    beside = {"losses": np.zeros(3), "optimizer.state.0.exp_avg": np.zeros(2), "vae.in.1.weight": np.zeros(2)}
    kept = ".".join(part for part in prefix.split(".") if not part.startswith(("_orig", "_fsdp")))
    found = find(network(prefix, 7) | (beside if kept else {}), ROOTS)
    check(found, 7)
    assert (found.name, found.others, found.unread) == (kept.rstrip(".") or ".", (), "")


def test_wrappers_of_single_layers():
    """FSDP, checkpoints of activations and torch.compile wrap layers too."""
    arrays = {
        "in.0._checkpoint_wrapped_module.weight": np.zeros(2),
        "out._orig_mod._fsdp_wrapped_module.bias": np.ones(2),
    }
    assert find(arrays, ROOTS).arrays.keys() == {"in.0.weight", "out.bias"}


@pytest.mark.parametrize(
    ("raw", "average"),
    [
        ("model.", "ema."), ("model.", "model_ema."), ("state_dict.", "state_dict_ema."), ("", "ema."),
        ("G.", "G_ema."), ("net.module.", "ema.module."), ("online_model.", "ema_model."),
        ("module.", "module.ema0.9999."), ("state_dict.model.", "callbacks.EMA.shadow."), ("p.", "p_ema."),
        ("net.", "averaged_net."),
    ],
)  # fmt: skip
def test_the_average_is_taken_and_the_other_by_its_name(raw, average):
    arrays = network(raw, 1) | network(average, 2) | {"step": np.zeros(())}
    if not raw:
        del arrays["step"]  # which would be one of the network's
    found = find(arrays, ROOTS)
    check(found, 2)
    assert (found.name, found.others) == (average.rstrip("."), (raw.rstrip(".") or ".",))
    other = find(arrays, ROOTS, raw.rstrip(".") or ".")
    check(other, 1)
    assert other.others == (average.rstrip("."),)
    check(find(arrays, ROOTS, average.rstrip(".")), 2)


def test_a_copy_is_named_by_a_part_of_its_name():
    arrays = network("state_dict.generator.", 1) | network("state_dict.critic.", 2) | network("old.critic.", 3)
    with pytest.raises(UserError, match=r"several copies of the network, old\.critic, state_dict\.critic, state_"):
        find(arrays, ROOTS)
    check(find(arrays, ROOTS, "generator"), 1)
    check(find(arrays, ROOTS, "old.critic"), 3)
    for name, message in (
        ("critic", "several of the networks"),
        ("ema", "none of the networks in the file are called"),
    ):
        with pytest.raises(UserError, match=message):
            find(arrays, ROOTS, name)
    with pytest.raises(UserError, match="it has no such network"):
        find({"a": np.zeros(1)}, ROOTS, "ema")
    with pytest.raises(UserError, match=re.escape("ema0.99, ema0.999: name one")):
        find(network("ema0.99.") | network("ema0.999."), ROOTS)


@pytest.mark.parametrize("top", ["", "state_dict."])
@pytest.mark.parametrize(("prefix", "kept"), [("model.net.", "net."), ("model.net.", "model.net."), ("net.", "net.")])
def test_an_average_whose_names_have_lost_their_dots(top, prefix, kept):
    """As latent-diffusion keeps it."""
    shadow = {f"{top}model_ema.{name.replace('.', '')}": array for name, array in network(kept, 2).items()}
    counters = {f"{top}model_ema.{name}": np.zeros(()) for name in ("decay", "num_updates")}
    arrays = network(top + prefix, 1) | shadow | counters
    found = find(arrays, ROOTS)
    check(found, 2)
    assert (found.name, found.others, found.unread) == (f"{top}model_ema", (f"{top}{prefix}"[:-1],), "")
    check(find(arrays, ROOTS, f"{top}{prefix}"[:-1]), 1)
    check(find(network() | {name.removeprefix(top): array for name, array in shadow.items()}, ROOTS), 0)


def test_an_average_without_names_is_told():
    shadow = {f"ema.shadow_params.{k}": np.zeros(2) for k in range(4)}
    for prefix, name in (("model.", "model"), ("", ".")):
        found = find(network(prefix, 1) | shadow, ROOTS)
        check(found, 1)
        assert (found.name, found.others, found.unread) == (name, (), "ema")


def test_files_of_other_networks_stay_as_they_are():
    arrays = {"a.weight": np.zeros(2), "xin.0.weight": np.zeros(2)}
    assert find(arrays, ROOTS).arrays == arrays


def test_words_for_averages():
    assert all(map(is_average, ("ema", "EMA", "model_ema", "ema_0.9999", "g.ema.net", "averaged", "swa_model")))
    assert not any(map(is_average, ("model", "schema", "emax", "stem", "")))
