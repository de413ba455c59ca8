"""The training loop: steps, evaluation, checkpoints, metrics, signals."""
