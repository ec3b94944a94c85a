"""Several processes that start, agree and end together, by the services of jax: see `docs/hosts.md`."""
