"""What a program may do to a model's parameters after an exchange was made for them.

A parameter that another one like it replaces, as ``load_state_dict(assign=True)`` does, is taken over; one that is
frozen is left alone. What would need other buckets is refused.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import nn

from hpcopt.errors import UnsupportedError

Named = Iterable[tuple[str, nn.Parameter]]


class Parameters:
    """A model's, or those that were named, as they were when this was made or last looked at.

    Attributes:
        trained: names and parameters that get gradients, each parameter once.
    """

    def __init__(self, source: nn.Module | Named) -> None:
        """Only a model can be followed to parameters that replace its own."""
        self._source = source if isinstance(source, nn.Module) else list(source)
        self._all = self._now()
        found = self._source.named_parameters() if isinstance(self._source, nn.Module) else self._source
        self.trained = [(name, p) for name, p in found if p.requires_grad]
        self._kinds = {p: _kind(p) for _, p in self.trained}

    def follow(self) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        """Give what was replaced, with what replaces it.

        Raises:
            UnsupportedError: something has changed so that the exchange must be made anew.
        """
        now = self._now()
        if now.keys() != self._all.keys():
            names = ", ".join(sorted(now.keys() ^ self._all.keys()))
            raise _refusal(f"the model had other parameters than now: {names}")
        heirs: dict[nn.Parameter, nn.Parameter] = {}
        for name, old in self._all.items():
            new = now[name]
            if heirs.setdefault(old, new) is not new:
                raise _refusal(f"{name} was the same parameter as another one")
            if old not in self._kinds:
                if new.requires_grad:
                    raise _refusal(f"{name} was frozen")
            elif _kind(new) != self._kinds[old]:
                raise _refusal(f"{name} was {_text(self._kinds[old])} and is {_text(_kind(new))}")
        self._all = now
        for old, new in heirs.items():
            if new is not old and old in self._kinds:
                self._kinds[new] = self._kinds.pop(old)
                yield old, new

    def _now(self) -> dict[str, nn.Parameter]:
        source = self._source
        return dict(source.named_parameters(remove_duplicate=False) if isinstance(source, nn.Module) else source)


def _kind(p: nn.Parameter) -> tuple[torch.Size, torch.dtype, torch.device]:
    """What its place in a bucket depends on."""
    return p.shape, p.dtype, p.device


def _text(kind: tuple[torch.Size, torch.dtype, torch.device]) -> str:
    shape, dtype, device = kind
    return f"{tuple(shape)} {dtype} on {device}"


def _refusal(what: str) -> UnsupportedError:
    return UnsupportedError(f"when the Exchange was made, {what}: remove() it and make it again, on all ranks")
