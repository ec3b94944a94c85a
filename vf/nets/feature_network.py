"""The interface of networks that metrics use: clips -> features, with everything on which these depend."""

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
    """A network that computes features of clips.

    Attributes:
        name: name such as `i3d`.
        dim: size of a feature vector.
        params: tree of arrays.
        apply: a pure function (params, clips u8 [b f h w 3]) -> f32 [b dim], including resizing and scaling, which
            raises ValueError for unsuitable shapes. Where `protocol` has "rows": "frames", it returns [b*f dim], the
            frames of each clip in order.
        protocol: everything that changes the features, ready for JSON: fingerprint of the weights, resampling, range,
            precision.
    """

    name: str
    dim: int
    params: Any
    apply: Callable[[Any, UInt8[jax.Array, "b f h w 3"]], Float[jax.Array, "b d"]]
    protocol: Mapping[str, Any]

    @functools.cached_property
    def devices(self) -> Mesh:
        """A mesh of all devices of this host, over which batches are split."""
        return Mesh(np.array(jax.local_devices()), "batch")

    @functools.cached_property
    def placed(self) -> Any:
        """The parameters, copied to every device."""
        return jax.device_put(self.params, NamedSharding(self.devices, PartitionSpec()))

    @functools.cached_property
    def compiled(self) -> Any:
        """`apply`, jitted, with batches split over the devices."""
        rows = NamedSharding(self.devices, PartitionSpec("batch"))
        return jax.jit(
            self.apply, in_shardings=(NamedSharding(self.devices, PartitionSpec()), rows), out_shardings=rows
        )
