"""From a config to the scorers of samples."""

from pathlib import Path

from ml_collections import ConfigDict

from vf.config.data import base_frame
from vf.config.values import choose
from vf.metrics.fvd import LINEAGES
from vf.metrics.protocol import ClipProtocol, Scorer
from vf.scores.features import default_cache
from vf.scores.networks import FAMILIES, networks
from vf.scores.random_conv3d import RandomConv3dDistance
from vf.scores.sprites import SpriteScores
from vf.scores.suite import SEGMENTS, Suite, metrics
from vf.types import naming_flags


def scorers(config: ConfigDict) -> dict[str, Scorer]:
    """{name: scorer of samples}. Sprites have scores in closed form besides.

    Raises UserError for unknown metrics, and for weights that are missing or not of the network that a metric needs.
    """
    made: dict[str, Scorer] = {"fd_random_conv3d": RandomConv3dDistance(config.eval.batch_size)}
    if config.data.source == "sprites":
        made["sprites"] = SpriteScores(base_frame(config))
    if config.eval.metrics:
        made["suite"] = _suite(config)
    return made


def _suite(config: ConfigDict) -> Suite:
    data, evaluation = config.data, config.eval
    lineage = choose("eval.lineage", evaluation.lineage, LINEAGES)
    known = metrics(lineage) | {SEGMENTS: metrics(lineage)["fvd"]}
    del known["clipsim"]  # a run has no captions
    names = tuple(name.strip() for name in evaluation.metrics.split(",") if name.strip())
    wanted = [choose("eval.metrics", name, known).network for name in names]
    files = {name: Path(evaluation[name]) for name in FAMILIES if evaluation.get(name)}
    with naming_flags({name: f"--config.eval.{name}" for name in (*FAMILIES, "other_weights")}):
        made, others = networks(
            wanted, files, lineage, data.frames, exact=evaluation.exact, other=evaluation.other_weights
        )
    protocol = ClipProtocol(
        lineage=evaluation.lineage, split=evaluation.reference_split or data.split, frames=data.frames,
        stride=data.stride, fps=data.fps, size=data.size, seed=config.seed,
    )  # fmt: skip
    cache = Path(evaluation.cache) if evaluation.cache else default_cache()
    return Suite(
        names, made, protocol, evaluation.batch_size, cache, evaluation.bootstrap, others,
        keep_generated=False,
    )  # fmt: skip
