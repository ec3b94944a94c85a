"""Which of how many processes this is: told by flags, or found in the cluster."""

import dataclasses
import importlib.util
import os
from typing import Any

from vf.hosts.ends import HostsError
from vf.types import UserError


@dataclasses.dataclass(frozen=True)
class Place:
    """Which of how many processes this is, and where process 0 is reached."""

    coordinator: str  # HOST:PORT
    processes: int
    process: int
    explicit: bool  # told by flags, not found

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of process 0."""
        host, port = self.coordinator.rsplit(":", 1)
        return host.strip("[]"), int(port)


def place(coordinator: str | None, processes: int | None, process: int | None, timeout: float) -> Place | None:
    """What the three flags say, or the cluster that jax finds itself in; None for a single process.

    timeout: seconds for the name of the first host to become known.

    Raises UserError for flags that do not fit together, and HostsError where the cluster cannot be asked."""
    given = {"coordinator": coordinator, "processes": processes, "process": process}
    if processes == 1 and coordinator is None and not process:
        return None
    if missing := [name for name, value in given.items() if value is None]:
        if len(missing) < 3:
            raise UserError(
                f"--coordinator, --processes and --process go together, and --{missing[0]} is missing: "
                "give all three, as --coordinator=HOST:PORT --processes=N --process=I"
            )
        return _detect(timeout)
    assert coordinator is not None
    assert processes is not None
    assert process is not None
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator must be HOST:PORT of process 0, as 10.0.0.1:8476, got {coordinator!r}")
    if processes < 1 or not 0 <= process < processes:
        raise UserError(f"--process must be 0 to {processes - 1} for --processes={processes}, got {process}")
    return Place(coordinator, processes, process, True) if processes > 1 else None


def _detect(timeout: float) -> Place | None:
    """Cloud TPU, SLURM's srun, Open MPI, Kubernetes's JobSet, in the way of `jax.distributed.initialize`."""
    from jax._src import clusters

    no_tpu = "tpu" not in os.environ.get("JAX_PLATFORMS", "tpu")
    candidates: list[tuple[type[clusters.ClusterEnv], bool]] = [
        (clusters.OmpiCluster, True),
        (clusters.SlurmCluster, int(os.environ.get("SLURM_NTASKS", 1)) > 1 and "SLURM_STEP_ID" in os.environ),
        (clusters.GkeTpuCluster, not no_tpu),
        (clusters.GceTpuCluster, not no_tpu),
        (clusters.K8sCluster, "JOB_COMPLETION_INDEX" in os.environ and bool(importlib.util.find_spec("kubernetes"))),
    ]
    for cluster, possible in candidates:
        try:
            if not possible or not cluster.is_env_present():
                continue
            # Pods of an indexed job that is no JobSet do the same thing with other seeds: each is alone.
            if cluster is clusters.K8sCluster and not _in_jobset(cluster):
                return None
            if (processes := cluster.get_process_count()) < 2:
                return None
            address = cluster.get_coordinator_address(int(timeout), os.environ.get("JAX_COORDINATOR_PORT"))
            return Place(address, processes, cluster.get_process_id(), False)
        except Exception as error:  # the metadata server, the name service, Kubernetes: each has errors of its own
            raise HostsError(
                f"this looks like one of several hosts ({cluster.name or 'Kubernetes'}), and the others cannot be "
                f"found ({type(error).__name__}: {error}): give --coordinator=HOST:PORT --processes=N --process=I, or "
                "--processes=1 for this one alone"
            ) from error
    return None


def _in_jobset(cluster: Any) -> bool:
    return "jobset.sigs.k8s.io/jobset-name" in (cluster._job().metadata.labels or {})
