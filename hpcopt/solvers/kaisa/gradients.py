"""From inverses to natural gradients: each layer's preconditioned here, or received from its column, then KL-clipped.

KL clipping: with W the gradients, P the preconditioned ones and <P, W> over all layers, every P is multiplied by
``nu = min(1, sqrt(kl_clip / (lr^2 <P, W>)))``, which bounds how far a step moves the model's predictions.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hpcopt.comm.ragged import exchange
from hpcopt.comm.world import World
from hpcopt.pinned import numbers, seen
from hpcopt.solvers.kaisa.layers.layer import Layer, memory_of
from hpcopt.solvers.kaisa.layers.matrix import Matrix, all_finite
from hpcopt.solvers.kaisa.method import PerLayer
from hpcopt.solvers.kaisa.moments import Moments
from hpcopt.solvers.kaisa.plan import Plan
from hpcopt.solvers.kaisa.refresh import Inverses
from hpcopt.solvers.kaisa.settings import KaisaSettings


class Gradients:
    """Those of the layers, W, to be replaced by P.

    Attributes:
        cosines: by layer, of the last step's P and W.
        clipped: the last step's nu.
    """

    def __init__(
        self,
        method: PerLayer,
        layers: Sequence[Layer],
        plan: Plan,
        inverses: Inverses,
        moments: Moments,
        world: World,
        settings: KaisaSettings,
    ) -> None:
        self._method, self._layers, self._plan, self._inverses = method, layers, plan, inverses
        self._moments, self._world, self._settings = moments, world, settings
        self._looked_at = [x for x in layers if isinstance(x, Matrix) or method.of(x).carried(x)]
        self._unclipped = [not method.of(layer).natural for layer in layers]
        self.cosines = {layer.name: math.nan for layer in layers}
        self.clipped = 1.0

    def precondition(self, damping: float, lr: float, step: int) -> None:
        """Replace all, unless some are not finite. Collective, where ranks have inverses of some layers only."""
        squares = [f.matrices * f.size**2 for layer in self._layers for f in (layer.a, layer.g) if f.size > 1]
        self._method.lend(self._inverses.flat.new_empty(max(squares, default=0)))
        self._replace(damping, lr, step)
        self._method.lend(None)

    def usable(self) -> bool:
        """Whether no method's state would be spoilt: gradients that are looked at themselves are all finite."""
        return not self._looked_at or bool(numbers([all_finite(self._looked_at)])[0])

    def _replace(self, damping: float, lr: float, step: int) -> None:
        used = [i for i, layer in enumerate(self._layers) if all(p.grad is not None for p in layer.parameters())]
        spread = self._spread(used, damping, step) if self._plan.placement.grid.columns > 1 else None
        preconditioned, dots = {}, []
        for i in used:  # each layer's gradient is looked at while it is still in the cache
            w = self._layers[i].gradient().to(self._layers[i].dtype)
            p = self._natural(i, w, damping) if spread is None else spread[self._plan.gradients.pieces[i]].view(w.shape)
            flat_p, flat_w = p.flatten(), w.flatten()
            dots += [torch.dot(flat_p, flat_w), torch.dot(flat_p, flat_p), torch.dot(flat_w, flat_w)]
            preconditioned[i] = p
        values = seen(torch.stack(dots).double().view(-1, 3)) if dots else torch.zeros(0, 3)
        if not torch.isfinite(values).all():
            return
        cosines = values[:, 0] / (values[:, 1] * values[:, 2]).sqrt().clamp(min=1e-30)
        self.cosines.update(zip((self._layers[i].name for i in used), cosines.tolist(), strict=True))
        values[torch.tensor([self._unclipped[i] for i in used], dtype=torch.bool), 0] = 0
        self.clipped = self._clip(float(values[:, 0].sum()) * lr**2)
        for i, p in preconditioned.items():
            self._layers[i].set_gradient(p, 1.0 if self._unclipped[i] else self.clipped)

    def _natural(self, i: int, w: Tensor, damping: float) -> Tensor:
        layer = self._layers[i]
        method = self._method.of(layer)
        p = method.apply(layer, self._inverses.of(i), w, damping, self._moments.of(i))
        graft = self._settings.graft if self._settings.graft is not None else not method.natural
        return p * (w.norm() / p.norm().clamp(min=torch.finfo(p.dtype).tiny)) if graft and not method.whole else p

    def _spread(self, used: Sequence[int], damping: float, step: int) -> Tensor:
        """Those of all layers, flat: of the own column computed, the others' received."""
        dtype, device = memory_of(self._layers)
        flat = torch.empty(self._plan.gradients.numel, dtype=dtype, device=device)  # unused pieces are never read
        for i in self._plan.worked:
            if i in used:
                w = self._layers[i].gradient().to(dtype)
                flat[self._plan.gradients.pieces[i]].view(w.shape).copy_(self._natural(i, w, damping))
        outgoing, incoming = ([m.of(flat) for m in ms] for ms in (self._plan.gradients_out, self._plan.gradients_in))
        with self._world.watch(f"preconditioned gradients, step {step}", self._world.ranks):
            exchange(self._world.transport, outgoing, incoming)
        return flat

    def _clip(self, divergence: float) -> float:
        clip = self._settings.kl_clip
        return 1.0 if clip is None or divergence <= clip else float((clip / divergence) ** 0.5)
