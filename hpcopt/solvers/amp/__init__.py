"""Asynchronous model parallelism: nodes on ranks, instances in flight between them, local steps of each node."""
