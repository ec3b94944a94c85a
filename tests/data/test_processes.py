"""A job that crashes its process affects no other job."""

import os

from vf.data.processes import Workers


def crash_on_seven(k: int) -> dict:
    """Work for a worker process."""
    if k == 7:
        os._exit(11)
    return {"k": k}


def test_a_crash_of_the_decoder_costs_one_clip():
    workers = Workers(2, crash_on_seven)
    jobs = [(workers.submit(k), k) for k in range(12)]
    found = [workers.result(*job) for job in jobs]
    after = workers.submit(20)
    assert workers.result(after, 20) == {"k": 20}
    workers.close()
    assert found[7] == {"rejected": "crashes the decoder"}
    assert [f for k, f in enumerate(found) if k != 7] == [{"k": k} for k in range(12) if k != 7]
