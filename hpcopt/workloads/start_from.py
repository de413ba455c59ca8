"""A network that begins with the weights of another run."""

from pathlib import Path

from torch import nn

from hpcopt.errors import CheckpointError, DataError
from hpcopt.store.weights import newest_weights


def load_newest_weights(model: nn.Module, run: Path) -> None:
    """Begin with the weights of a run's newest checkpoint, as ``[workload] start_from`` asks for.

    Raises:
        DataError: there are none, or they are of another network.
    """
    try:
        model.load_state_dict(newest_weights(run).state_dict)
    except CheckpointError as cause:
        raise DataError(f"[workload] start_from: {cause}") from cause
    except RuntimeError as cause:
        raise DataError(f"[workload] start_from: {run} holds another network ({cause})") from cause
