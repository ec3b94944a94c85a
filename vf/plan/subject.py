"""The training run and the sampler that are planned."""

import dataclasses
from collections.abc import Callable
from typing import Any

from vf.models.model import Model
from vf.models.sampler import SampleOptions
from vf.training import state as states
from vf.training.optim import Optimizer


@dataclasses.dataclass(frozen=True)
class PlanSubject:
    """A training run and its sampler. The model computes on the mesh for which the subject was made."""

    model: Model
    tx: Optimizer
    sample_options: SampleOptions
    sample_seed: int
    sample_batch_size: int
    seed: int
    batch_size: int
    eval_batch_size: int
    accumulate: int
    ema_decay: float
    param_dtype: Any
    dtype: Any
    remat: bool
    blocks: int  # residual blocks per level, of the network that has most

    def state(self) -> Any:
        """Shapes of the training state."""
        return states.shapes(self.model.shapes(), self.tx, self.param_dtype)


MakeSubject = Callable[..., PlanSubject]
"""A picklable function: (mesh, the most residual blocks per level, None for all) -> the subject.

With `accumulate` and `remat` it is the subject that they would make it.
"""
