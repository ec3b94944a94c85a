"""Several processes that begin, agree and end together, on jax's own services: `docs/hosts.md` tells how."""
