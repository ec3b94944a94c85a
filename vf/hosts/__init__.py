"""Several processes that are one run: how they find each other, agree, stop together and end together.

Before jax starts, every process sends a card over TCP to process 0: who it is, and what its config, code and packages
are. Process 0 answers when all have come, or when time is up: with a number to be read back from the run's folder, or
with one sentence that names who is missing or differs. The connections stay open: the system closes that of a process
that dies, however it dies, and all others are told at once, where jax would notice a minute later. Over them the
processes also agree on the step at which SIGTERM stops them.

    process I -> 0   card   read          share (of 0)   stop          at (step)   bye (status, why)
    0 -> all         start  go | problem  share          ask (for at)  stop_at     gone (who, why) | done

One line of JSON each. Process 0 is reached at the coordinator's port; jax's own service gets a free port above it.
A single process needs none of this and opens no connection.
"""
