"""Networks of reinforcement learning on vectors: bodies of actors and critics, and features under them."""
