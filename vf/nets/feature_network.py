"""A network that turns clips into features, with whatever its numbers depend on: what metrics ask for."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, UInt8


@dataclasses.dataclass(frozen=True)
class Network:
    """What turns clips into features.

    Attributes:
        name: such as `i3d`.
        dim: numbers in a feature.
        params: tree of arrays.
        apply: pure, (params, clips u8 [b f h w 3]) -> f32 [b dim]; any resizing and scaling is in it, and it raises
            ValueError for clips that it cannot take (their shape is static). Where `protocol` says "rows": "frames",
            it gives [b f dim] row by row, [b*f dim].
        protocol: whatever changes the features, fit for JSON: weights' fingerprint, resampling, range, precision.
    """

    name: str
    dim: int
    params: Any
    apply: Callable[[Any, UInt8[jax.Array, "b f h w 3"]], Float[jax.Array, "b d"]]
    protocol: Mapping[str, Any]

    @functools.cached_property
    def devices(self) -> Mesh:
        """All devices of this host: the batch is cut over them."""
        return Mesh(np.array(jax.local_devices()), "batch")

    @functools.cached_property
    def placed(self) -> Any:
        """The parameters, on every device."""
        return jax.device_put(self.params, NamedSharding(self.devices, PartitionSpec()))

    @functools.cached_property
    def compiled(self) -> Any:
        """`apply`, whose batch lies over the devices."""
        rows = NamedSharding(self.devices, PartitionSpec("batch"))
        return jax.jit(
            self.apply, in_shardings=(NamedSharding(self.devices, PartitionSpec()), rows), out_shardings=rows
        )
