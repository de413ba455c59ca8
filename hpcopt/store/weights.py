"""The model out of a run's checkpoints, for whoever has use for it alone."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from hpcopt.errors import CheckpointError
from hpcopt.store.checkpoint import SHARED, Checkpoints


class Weights(NamedTuple):
    """A model's ``state_dict`` on the CPU, and the number of steps that made it."""

    step: int
    state_dict: dict[str, Tensor]


def newest_weights(run: Path, name: str = "model") -> Weights:
    """Read the model of a run directory's newest checkpoint that is whole; a run that goes on may be read, too.

    Args:
        run: its directory.
        name: under which a script kept the model.

    Raises:
        CheckpointError: there is none.
    """
    checkpoints = Checkpoints(Path(run) / "checkpoints", keep=1)
    damage = ""
    for step in checkpoints.steps():
        try:
            model = checkpoints.read_part(step, SHARED)["solver"][name]
            if not all(isinstance(tensor, Tensor) for tensor in model.values()):
                raise TypeError(f"its {name} is no state_dict")
        except CheckpointError as error:
            damage += f"\n{error}"
        except (KeyError, TypeError, AttributeError) as error:
            damage += f"\n{checkpoints.path(step)} is not a checkpoint of a job ({error!r})"
        else:
            return Weights(step, model)
    raise CheckpointError(f"no checkpoint in {checkpoints.folder} can be used{damage}")


def digest_of(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of a network's weights, with their names."""
    found = hashlib.sha256()
    for name, tensor in weights.items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
