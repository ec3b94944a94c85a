"""Finds the number of this process and of all processes of the run, from flags or from the cluster that started it."""

import dataclasses
import json
import os
import re
import urllib.request
from collections.abc import Mapping

import jax

from vf.hosts.errors import HostsError
from vf.types import UserError


@dataclasses.dataclass(frozen=True)
class Process:
    """One of several processes of a run."""

    index: int  # from 0
    count: int
    coordinator: str | None = None  # HOST:PORT of process 0; None where jax finds it


def this_process(coordinator: str | None, processes: int | None, process: int | None) -> Process | None:
    """This process, as the three flags or else the cluster say; None for a single process.

    Raises UserError for flags that contradict each other, and HostsError where the cluster's information is missing.
    """
    if processes == 1 and coordinator is None and not process:
        return None
    if coordinator is None and processes is None and process is None:
        try:
            return from_cluster(os.environ, on_tpu="tpu" in (getattr(jax.config, "jax_platforms", None) or ""))
        except Exception as error:  # a variable is missing or malformed, or the metadata server does not answer
            raise HostsError(
                f"this looks like one of several processes, and the cluster does not say which ({error!r}): give "
                "coordinator, processes and process, or processes=1 for this one alone"
            ) from error
    if coordinator is None or processes is None or process is None:
        raise UserError(f"give coordinator, processes and process, or none: got {coordinator}, {processes}, {process}")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"coordinator must be HOST:PORT of process 0, as 10.0.0.1:8476, got {coordinator!r}")
    if processes < 1 or not 0 <= process < processes:
        raise UserError(f"process must be 0 to {processes - 1} for processes={processes}, got {process}")
    return Process(process, processes, coordinator) if processes > 1 else None


def from_cluster(environment: Mapping[str, str], on_tpu: bool) -> Process | None:
    """The process according to Open MPI, SLURM's srun or Cloud TPU, in the order in which jax checks these.

    jax reports what it finds only after it has connected, and a single process should not connect. None for a single
    process. Raises LookupError or ValueError where information is missing or malformed.
    """
    settings, index, count = dict(environment), 0, 1
    if on_tpu and not {"TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES", "TPU_SKIP_MDS_QUERY"} & settings.keys():
        settings = _metadata() | settings
    if "OMPI_MCA_orte_hnp_uri" in settings:
        index, count = int(settings["OMPI_COMM_WORLD_RANK"]), int(settings["OMPI_COMM_WORLD_SIZE"])
    elif "SLURM_STEP_ID" in settings and int(settings.get("SLURM_NTASKS", 1)) > 1:
        index, count = int(settings["SLURM_PROCID"]), int(settings["SLURM_NTASKS"])
    elif on_tpu and (hosts := settings.get("TPU_PROCESS_ADDRESSES") or settings.get("TPU_WORKER_HOSTNAMES")):
        hosts_per_slice, slices = len(hosts.split(",")), int(settings.get("MEGASCALE_NUM_SLICES") or 1)
        index = int(settings["TPU_WORKER_ID"]) + hosts_per_slice * int(settings.get("MEGASCALE_SLICE_ID") or 0)
        count = hosts_per_slice * slices
    elif "JOB_COMPLETION_INDEX" in settings:
        raise LookupError("Kubernetes gives a pod its number, but not whether all pods of the job are one run")
    return Process(index, count) if count > 1 else None


def _metadata() -> dict[str, str]:
    """Compute Engine's metadata of this TPU machine, under Kubernetes' names. No proxy is used."""
    server = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")
    url = f"http://{server}/computeMetadata/v1/instance/attributes/?recursive=true"
    request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
        attributes = json.load(answer)
    slices = dict(re.findall(r"^(MEGASCALE_\w+): *'?([^'\n]*)", attributes.get("tpu-env", ""), re.MULTILINE))
    hosts, worker = attributes.get("worker-network-endpoints", ""), attributes.get("agent-worker-number", "")
    return {**slices, "TPU_WORKER_HOSTNAMES": hosts, "TPU_WORKER_ID": worker}
