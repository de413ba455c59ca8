"""One graph over all ranks: each has some nodes, and gets what their neighbours elsewhere have at every layer."""
