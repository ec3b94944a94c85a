"""What models have in common; `videofusion`, `one_network` and, beside it, `superres` are those there are."""

import abc
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from vf import video
from vf.diffusion import gaussian, solvers
from vf.diffusion.guidance import UNGUIDED, Guidance, Levels, guided
from vf.diffusion.known import Mask
from vf.diffusion.schedule import Schedule
from vf.nets import initial
from vf.types import Params

Condition = Mapping[str, Array]
"""What a clip is conditioned on, as far as the model uses it: `label` i32 [b], `embedding` f32 [b d], and of its text
`text_states` f32 [b n e] of the tokens, `text_mask` bool [b n] of those up to its end, `text_pooled` f32 [b d]; for
`superres` `low` f32 [b f h w c] and `amplitude` f32 [b]."""
TEXT = ("text_states", "text_mask", "text_pooled")


GUIDE = "guide_"
"""Before a network's name: that of the parameters of a weaker version, which guides it (autoguidance)."""


class Network(Protocol):
    """What a model asks of `vf.nets.unet.UNet`; tests hand in closed forms."""

    def init(self, rngs: Any, *args: Any, **kwargs: Any) -> Any: ...
    def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any: ...


class Errors(NamedTuple):
    """For each frame of each clip: the training loss, and the share of the noise that was not found.

    `eps` is the mean squared error of eps_hat over the variance of the unknown part of eps: 0 for a perfect network
    and 1 for one that predicts no noise, in every model and context. The unknown part is all of eps^i, or with context
    `base_frame`, where b is known by then, r^i alone (variance 1 - lambda). The scale is the same, the task is not:
    with `base_frame` less noise hides the clip, and the network sees the clean base frame.
    """

    loss: Float[Array, "b f"]
    eps: Float[Array, "b f"]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Model(abc.ABC):
    """Base class of all models: the noise schedule, the clip's shape, and how networks get their conditions.

    A model gives its networks (`parts`), errors of noised clips (`errors`) and a denoiser; samplers are separate.

    Attributes:
        schedule: alpha and sigma at each step.
        shape: f h w c of a clip.
        base_frame: array index of the base frame.
        null_label: the label that means "no class"; None for a model without labels.
        embedding_dim: channels of the embedding that the networks see; 0 for none.
        readers: names of the networks that read each clip's text; () for a model without texts.
        text_shape: tokens of a text, channels of their states and of the embedding of the whole.
        condition_dropout: share of training examples that lose their condition, in [0, 1].
        loss_weight: bound of the factor between the error of a prediction and its loss.
        learned_variance: whether samples use the variance that networks have learned. Training here is of the
            prediction alone, which leaves that behind.
        networks: names of the networks, the top-level keys of the parameters.
    """

    schedule: Schedule
    shape: tuple[int, int, int, int]
    base_frame: int
    null_label: int | None = None
    embedding_dim: int = 0
    readers: tuple[str, ...] = ()
    text_shape: tuple[int, int, int] = (0, 0, 0)
    condition_dropout: float = 0.0
    loss_weight: float = 20.0
    learned_variance: bool = False
    networks: ClassVar[tuple[str, ...]]

    @abc.abstractmethod
    def draw_noise(self, key: Key[Array, ""]) -> Float[Array, "f h w c"]:
        """The noise of one clip, from the model's prior."""

    @abc.abstractmethod
    def parts(self) -> dict[str, tuple[Network, int, int]]:
        """{name: (network, channels that it reads, frames that it reads)} of each network."""

    def initializers(self) -> tuple[dict[str, Params], dict[str, initial.Initializer]]:
        """Shapes and dtypes of the parameters {network: ...}, and {'/'-joined path: how it begins}; nothing is made."""
        shapes: dict[str, Params] = {}
        begins: dict[str, initial.Initializer] = {}
        for name in self.parts():
            shapes[name], found = self.begins(name)
            begins |= {f"{name}/{path}": one for path, one in found.items()}
        return shapes, begins

    def begins(self, network: str) -> tuple[Params, Mapping[str, initial.Initializer]]:
        """As `initializers`, of one network alone. Raises ValueError for sizes that do not fit together."""
        return initial.of(functools.partial(self._init, network))

    def shapes(self) -> dict[str, Params]:
        """Shapes and dtypes of the parameters."""
        return self.initializers()[0]

    def clips(self, params: Mapping[str, Params], batch: Mapping[str, Array]) -> Float[Array, "b f h w c"]:
        """What the model denoises of a batch, as `errors` takes it: clips in [-1, 1], or what else it is of."""
        return video.from_uint8(batch["video"])

    @abc.abstractmethod
    def errors(
        self,
        params: Mapping[str, Params],
        x: Float[Array, "b f h w c"],
        condition: Condition,
        keys: Key[Array, " b"],
        t: Int[Array, " b"] | None = None,
        train: bool = False,
    ) -> Errors:
        """Errors of clips `x` in [-1, 1] at times `t` (drawn where None); every draw comes from `keys`.

        train: with dropout, dropped conditions and whatever else belongs to training alone.
        """

    @abc.abstractmethod
    def denoiser(
        self, params: Mapping[str, Params], condition: Condition, guidance: Guidance = UNGUIDED
    ) -> solvers.Denoiser:
        """z_t [b f h w c], t -> `gaussian.Estimate` of all frames, guided as `_guided` says."""

    def _draw_t(self, keys: Key[Array, " b"]) -> Int[Array, " b"]:
        return jax.vmap(lambda k: jax.random.randint(k, (), 0, self.schedule.steps))(keys)

    def _drop(self, keys: Key[Array, " b"]) -> Array:
        return jax.vmap(lambda k: jax.random.bernoulli(k, self.condition_dropout))(keys)

    def condition(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        """The fields of `batch` that this model conditions on. Raises ValueError where one is missing."""
        wanted = {"label": self.null_label is not None, "embedding": self.embedding_dim > 0}
        wanted |= dict.fromkeys(TEXT, bool(self.readers))
        missing = [name for name, used in wanted.items() if used and name not in batch]
        if missing:
            raise ValueError(f"the model is conditioned on {missing[0]!r}, which the records do not have")
        return {name: batch[name] for name, used in wanted.items() if used}

    def _call(
        self,
        name: str,
        params: Params,
        z: Array,
        t: Array,
        condition: Condition,
        null: Array,
        with_variance: bool = False,
        **kwargs: Any,
    ) -> Array:
        """One pass of the network `name`, with the condition of rows where `null` holds replaced by none.

        A network with learned variance returns it after the prediction; it is cut off unless `with_variance`.
        """
        if self.null_label is not None:
            kwargs["label"] = jnp.where(null, self.null_label, condition["label"])
        if "embedding" in condition:
            kwargs |= {"cond": condition["embedding"], "null": null}
        if name in self.readers:
            kwargs |= {field: condition[field] for field in TEXT} | {"null": null}
        return self.parts()[name][0].apply({"params": params}, z, t, **kwargs)[
            ..., : self.shape[-1] * (1 + with_variance)
        ]

    def _guided(
        self,
        params: Mapping[str, Params],
        name: str,
        kind: gaussian.Prediction,
        levels: Levels,
        condition: Condition,
        guidance: Guidance,
        clean: Mask | None = None,
    ) -> Callable[..., gaussian.Estimate]:
        """(z, t scalar, channels beside z, memory) -> the guided estimate of the network `name`, which predicts `kind`.

        Where `params` has parameters `GUIDE + name`, the same network with these guides it, else its prediction without
        the condition does.

        clean: bool [f], the frames that the network is told to be at time 0.
        """
        names = list(condition)

        def predictor(params: Params) -> Callable[..., Array]:
            def predict(z: Array, t: Array, beside: Array, *values_null: Array) -> Array:
                *values, null = values_null
                given = dict(zip(names, values, strict=True))
                z = jnp.concatenate([z, beside], -1)
                t = t if clean is None else jnp.where(clean, 0, t[:, None])
                return self._call(name, params, z, t, given, null, self.learned_variance)

            return predict

        weaker = predictor(params[GUIDE + name]) if GUIDE + name in params else None
        can_be_guided = bool(names) or weaker is not None
        estimate = guided(predictor(params[name]), kind, levels, guidance if can_be_guided else UNGUIDED, weaker)

        def call(z: Array, t: Array, memory: Any = None, beside: Array | None = None) -> gaussian.Estimate:
            beside = z[..., :0] if beside is None else beside
            before = None if memory is None else memory.get(name)
            found = estimate(z, jnp.full(len(z), t), beside, *condition.values(), memory=before)
            return found if found.memory is None else found._replace(memory={name: found.memory})

        return call

    def _levels(self, t: Int[Array, " b"]) -> tuple[Float[Array, "b 1 1 1 1"], Float[Array, "b 1 1 1 1"]]:
        """Amplitudes of clip and noise in z_t [b f h w c]."""
        shape = (-1, 1, 1, 1, 1)
        return self.schedule.alpha(t).reshape(shape), self.schedule.sigma(t).reshape(shape)

    def _further_inputs(self) -> dict[str, Array]:
        """Inputs, of one clip, that networks take beside label, embedding and text."""
        return {}

    def _init(self, name: str) -> Any:
        net, channels, frames = self.parts()[name]
        _, h, w, _ = self.shape
        kwargs: dict[str, Any] = {}
        if self.null_label is not None:
            kwargs["label"] = jnp.zeros(1, jnp.int32)
        if self.embedding_dim:
            kwargs["cond"] = jnp.zeros((1, self.embedding_dim))
        kwargs |= self._further_inputs()
        if name in self.readers:
            tokens, width, dim = self.text_shape
            kwargs |= {"text_states": jnp.zeros((1, tokens, width)), "text_mask": jnp.ones((1, tokens), bool)}
            kwargs |= {"text_pooled": jnp.zeros((1, dim))}
        z, t = jnp.zeros((1, frames, h, w, channels)), jnp.zeros(1, jnp.int32)
        return net.init(jax.random.key(0), z, t, **kwargs)["params"]


def check_prediction(schedule: Schedule, name: str, kind: gaussian.Prediction) -> None:
    """Raises ValueError where eps is to be predicted of what holds nothing else; `name` is the prediction's."""
    if kind == "eps" and schedule.ends_in_noise:
        raise ValueError(
            f"{name} is eps, but the last step of this schedule is noise alone (zero terminal SNR), and eps says "
            "nothing of the clip there: predict v or x_0"
        )


def mse(difference: Float[Array, "*n h w c"]) -> Float[Array, "*n"]:
    """Mean square over height, width and channels."""
    return jnp.mean(difference**2, axis=(-3, -2, -1))
