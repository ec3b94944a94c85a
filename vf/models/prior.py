"""A prior as a model: one network over embeddings, which are clips of one frame of one pixel."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from jaxtyping import Array, Float

from vf.models.one_network import OneNetwork
from vf.nets.prior import denormalised, normalised
from vf.types import Params


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Prior(OneNetwork):
    """Diffusion of the embeddings of records, by `vf.nets.prior.Prior`; `shape` is (1, 1, 1, their numbers).

    They are noised in units of the statistics that the network's parameters hold.
    """

    networks: ClassVar[tuple[str, ...]] = ("prior",)

    def clips(self, params: Mapping[str, Params], batch: Mapping[str, Array]) -> Float[Array, "b 1 1 1 d"]:
        """As `Model.clips`: the records' embeddings, in units of their statistics."""
        return normalised(params["prior"], batch["embedding"])

    def embeddings(self, params: Mapping[str, Params], clips: Float[Array, "b 1 1 1 d"]) -> Float[Array, "b d"]:
        """The inverse of `clips`."""
        return denormalised(params["prior"], clips)
