"""Which of how many processes this is: by flags, and in clusters."""

import http.server
import json
import threading

import pytest

from vf.hosts import process
from vf.hosts.errors import HostsError
from vf.hosts.process import Process, from_cluster, this_process
from vf.types import UserError

SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"}
GKE = {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}
POD = {"JOB_COMPLETION_INDEX": "3"}


def test_flags_specify_the_process():
    assert this_process("10.0.0.1:8476", 4, 3) == Process(3, 4, "10.0.0.1:8476")
    assert this_process("[::1]:8476", 2, 0) == Process(0, 2, "[::1]:8476")
    assert this_process("10.0.0.1:8476", 1, 0) is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("a:1", None, 0), "give coordinator, processes and process, or none: got a:1, None, 0"),
        ((None, 2, 0), "or none: got None, 2, 0"),
        (("a:1", 2, 2), "process must be 0 to 1 for processes=2, got 2"),
        (("a", 2, 1), "coordinator must be HOST:PORT"),
        (("a:b", 2, 1), "coordinator must be HOST:PORT"),
    ],
)
def test_inconsistent_flags_are_refused(flags, message):
    with pytest.raises(UserError, match=message):
        this_process(*flags)


@pytest.mark.parametrize(
    ("environment", "on_tpu", "expected"),
    [
        ({}, False, None),
        ({"TPU_SKIP_MDS_QUERY": "1"}, True, None),
        (SLURM, False, Process(1, 2)),
        (SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, False, None),
        ({name: value for name, value in SLURM.items() if name != "SLURM_STEP_ID"}, False, None),  # the batch script
        (
            {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:3", "OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "3"},
            False,
            Process(2, 3),
        ),
        (GKE, True, Process(1, 2)),
        (GKE, False, None),  # the CPUs of a TPU machine
        (GKE | {"MEGASCALE_NUM_SLICES": "3", "MEGASCALE_SLICE_ID": "2"}, True, Process(5, 6)),
        ({"TPU_PROCESS_ADDRESSES": "a:1,b:1,c:1", "TPU_WORKER_ID": "0"}, True, Process(0, 3)),
        (GKE | POD | {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, True, None),
    ],
)
def test_clusters(environment, on_tpu, expected):
    assert from_cluster(environment, on_tpu) == expected


def test_a_pod_needs_its_process_flags(monkeypatch):
    """Pods of an indexed job may be one run, or many."""
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "3")
    with pytest.raises(HostsError, match=r"Kubernetes gives .* or processes=1 for this one"):
        this_process(None, None, None)
    assert this_process(None, 1, None) is None


@pytest.fixture
def metadata(monkeypatch):
    """Compute Engine's attributes of a machine, as its metadata server gives them to requests with its header."""
    attributes: dict[str, str] = {}

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            right = self.headers["Metadata-Flavor"] == "Google" and self.path.endswith("/attributes/?recursive=true")
            self.send_response(200 if right else 403)
            self.end_headers()
            self.wfile.write(json.dumps(attributes).encode())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("GCE_METADATA_IP", f"127.0.0.1:{server.server_port}")
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # no server
        yield attributes
        server.shutdown()


def test_a_slice_of_tpu_machines(metadata):
    assert from_cluster({}, True) is None  # a machine that is no part of a slice has none of these attributes
    metadata |= {"agent-worker-number": "1", "worker-network-endpoints": "unknown:0:10.0.0.1,unknown:1:10.0.0.2"}
    assert from_cluster({}, True) == Process(1, 2)
    metadata["tpu-env"] = "TYPE: 'v5e'\nMEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '1'\n"
    assert from_cluster({}, True) == Process(3, 4)
    metadata |= {"worker-network-endpoints": "host", "agent-worker-number": "0", "tpu-env": ""}
    assert from_cluster({}, True) is None


def test_a_cluster_that_does_not_answer(monkeypatch):
    monkeypatch.setattr(process, "from_cluster", lambda *_, **__: 1 / 0)
    with pytest.raises(HostsError, match=r"does not say which.*division by zero.*processes=1 for this one alone"):
        this_process(None, None, None)
