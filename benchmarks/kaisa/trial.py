"""One run of one optimizer on one task, as a point of a study.

    hpcopt study benchmarks/kaisa/language_model.toml --set "study.seeds=[0, 1, 2]"

A point names a task, an arm, a learning rate, steps and a seed. The rate rises over a twentieth of the steps, then
falls linearly to 2 %. The held-out text chose nothing but rates. A run depends on its point alone, but for the CPU
seconds, which are those of the steps, on one thread: compare those of one turn.
"""

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

import hpcopt
from benchmarks.kaisa.tasks import ENDS
from benchmarks.kaisa.tasks import task as make
from hpcopt.comm.world import alone
from hpcopt.optim import AdamWConfig, LambConfig, SgdConfig
from hpcopt.optim.any_torch import AnyTorchConfig
from hpcopt.optim.config import OptimizerConfig
from hpcopt.optim.modes import to_evaluation, to_training
from hpcopt.optim.schedule import ConstantConfig, LinearConfig, ScheduleConfig
from hpcopt.optim.several import Several
from hpcopt.solvers.kaisa.layers.layer import Layer

FALLING, CONSTANT = LinearConfig(warmup=0.05, final=0.02), ConstantConfig(warmup=0.05)
EVALUATIONS = 5
REST_LR = 0.003  # AdamW's, of parameters that an arm leaves to it

KFAC: dict[str, Any] = {"damping": 0.01, "kl_clip": 1e-4, "factor_every": 5, "inverse_every": 10}
BEFORE_ADAMW: dict[str, Any] = {"damping": 1e-3, "kl_clip": 1.0, "factor_every": 5, "inverse_every": 10}
OFTEN: dict[str, Any] = {"factor_every": 1, "inverse_every": 10}

FREE: dict[str, Any] = {"kl_clip": None}
INNER, PLAIN_ADAMW = SgdConfig(lr=1, momentum=0.9), AdamWConfig(weight_decay=0.0)

Idea = Callable[["Training"], None]


@dataclass(frozen=True)
class Arm:
    """An optimizer, the methods that change gradients before it, and ideas that no setting has."""

    optimizer: OptimizerConfig
    kaisa: dict[str, Any] | None = None
    ends: bool = True  # embeddings and output layer go by the arm as well, not by AdamW
    begin: Idea | None = None
    before: Idea | None = None
    after: Idea | None = None
    clip_by_top: bool = False  # the clip is of the rate at its top, so that steps shorten with the rate
    schedule: ScheduleConfig = FALLING
    terms: bool = True  # the preconditioner is told of how many terms the loss is a mean; if not, it takes samples


class Training:
    """A model with its optimizer."""

    def __init__(self, task: str, arm: Arm, lr: float, seed: int, steps: int) -> None:
        self.arm, self.lr, self.steps, self.done = arm, lr, steps, 0
        self.task, self.ends = make(task, seed), ENDS.get(task, [])
        self.model = self.task.model
        self.kaisa: hpcopt.Kaisa | None = None
        self.optimizer = self._optimizer(seed)
        to_training(self.optimizer)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.state: dict[str, Any] = {}
        if arm.begin is not None:
            arm.begin(self)

    def _optimizer(self, seed: int) -> torch.optim.Optimizer:
        arm, inner = self.arm, self.arm.optimizer.model_copy(update={"lr": self.lr})
        if arm.kaisa is None and arm.ends:
            return inner.build(self.model.parameters())
        moved = set(self._matrices()) if arm.kaisa is None else self._preconditioned(seed)
        rest = [p for p in self.model.parameters() if p not in moved]
        own = inner.build(p for p in self.model.parameters() if p in moved)
        return Several([own, torch.optim.AdamW(rest, lr=REST_LR, weight_decay=0.0)]) if rest else own

    def _matrices(self) -> Iterator[nn.Parameter]:
        """Weights of two or more dimensions but those of embeddings and output layer."""
        for name, p in self.model.named_parameters():
            if p.ndim > 1 and not any(re.search(end, name) for end in self.ends):
                yield p

    def _preconditioned(self, seed: int) -> set[nn.Parameter]:
        """Those of the layers that the arm's method takes."""
        arm = self.arm
        assert arm.kaisa is not None
        lr = (lambda: self.lr) if arm.clip_by_top else (lambda: self.lr * self.part)
        skip = (*arm.kaisa.get("skip", ()), *(() if arm.ends else self.ends))
        self.kaisa = hpcopt.Kaisa(self.model, alone(), lr=lr, seed=seed, **{**arm.kaisa, "skip": skip})
        return {p for layer in self.layers() for p in layer.parameters()}

    @property
    def part(self) -> float:
        """Of the learning rate, now."""
        return self.arm.schedule.factor(self.done, self.steps)

    def step(self) -> None:
        """Do one."""
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * self.part
        batch = self.task.batch()
        self.optimizer.zero_grad()
        self.task.loss(batch, self.kaisa).backward()
        if self.arm.before is not None:
            self.arm.before(self)
        if self.kaisa is not None:
            self.kaisa.step(self.task.terms(batch) if self.arm.terms else None)
        if self.arm.after is not None:
            self.arm.after(self)
        self.optimizer.step()
        self.done += 1

    @torch.no_grad()
    def held_out(self) -> float:
        """Loss of the held-out data."""
        self.model.eval()
        to_evaluation(self.optimizer)
        loss = self.task.held_out()
        to_training(self.optimizer)
        self.model.train()
        return loss

    def layers(self) -> list[Layer]:
        assert self.kaisa is not None
        return self.kaisa.layers.found


def in_turns(trainings: dict[str, Training], rounds: int = 4, steps: int = 20) -> dict[str, list[float]]:
    """CPU seconds of a step of each, one number a round; a turn is a whole number of refreshes."""
    found: dict[str, list[float]] = {name: [] for name in trainings}
    for turn in range(rounds + 1):
        for name, training in trainings.items():
            before = time.thread_time()
            for _ in range(steps):
                training.step()
            if turn > 0:
                found[name].append((time.thread_time() - before) / steps)
    return found


def momentum_before(t: Training) -> None:
    """The gradient's average is preconditioned, in place of the average of what was."""
    for p in t.model.parameters():
        m = t.state.setdefault(p, torch.zeros_like(p))
        p.grad.copy_(m.mul_(0.9).add_(p.grad))


def bounded(t: Training) -> None:
    """A layer's step has the size of AdamW's steps, .2 for each value, whatever the gradient's."""
    for layer in t.layers():
        w = layer.gradient()
        layer.set_gradient(w, 0.2 * w.numel() ** 0.5 / max(float(w.norm()), 1e-30))


def clip_by_layer(t: Training) -> None:
    """Each layer has its own share of the clip."""
    layers, clip = t.layers(), 1e-4 / len(t.layers())
    for layer, raw in zip(layers, t.state["raw"], strict=True):
        p = layer.gradient()
        divergence = float((p * raw).sum()) * (t.lr * t.part) ** 2
        if divergence > clip:
            layer.set_gradient(p, (clip / divergence) ** 0.5)


def keep(t: Training) -> None:
    t.state["raw"] = [layer.gradient().clone() for layer in t.layers()]


def adam_norm(t: Training) -> None:
    """A layer's step has the norm of Adam's on the raw gradient."""
    step = t.done + 1
    for i, (layer, raw) in enumerate(zip(t.layers(), t.state["raw"], strict=True)):
        m, v = t.state.setdefault(i, (torch.zeros_like(raw), torch.zeros_like(raw)))
        m.lerp_(raw, 0.1)
        v.lerp_(raw.square(), 0.001)
        norm = ((m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)).norm()
        p = layer.gradient()
        layer.set_gradient(p, float(norm / p.norm().clamp(min=1e-30)))


def kfac(optimizer: OptimizerConfig = INNER, ideas: dict[str, Any] | None = None, **settings: Any) -> Arm:
    """K-FAC, and what is different."""
    return Arm(optimizer, {**KFAC, **settings}, **(ideas or {}))


def before_adamw(**settings: Any) -> Arm:
    """K-FAC of all layers but embeddings and what gives logits, whose gradients AdamW takes, too."""
    return Arm(PLAIN_ADAMW, {**BEFORE_ADAMW, **settings}, ends=False)


def whole(method: str, **settings: Any) -> Arm:
    """A method of weights; embeddings, output layer, norms and biases go by AdamW."""
    return Arm(SgdConfig(lr=1, momentum=0), {"method": method, **settings}, ends=False)


ARMS: dict[str, Arm] = {
    "sgd": Arm(SgdConfig(lr=1, momentum=0.9, nesterov=True)),
    "adamw": Arm(PLAIN_ADAMW),
    "schedule_free": Arm(AnyTorchConfig(type="schedulefree:AdamWScheduleFree", lr=1), schedule=CONSTANT),
    "lamb": Arm(LambConfig(weight_decay=0.0)),
    "kfac": kfac(),
    "kfac: ends by AdamW": kfac(ideas={"ends": False}),
    "kfac: clip by the top rate": kfac(ideas={"clip_by_top": True}),
    "kfac: no clip": kfac(**FREE),
    "kfac: clip by layer": kfac(**FREE, ideas={"before": keep, "after": clip_by_layer}),
    "kfac: momentum before": kfac(SgdConfig(lr=1, momentum=0), {"before": momentum_before}),
    "kfac: momentum before, clip 0.01": kfac(
        SgdConfig(lr=1, momentum=0), {"before": momentum_before}, kl_clip=1e-2
    ),
    "kfac: bounded steps": kfac(**FREE, ideas={"after": bounded}),
    "kfac: Adam's norm": kfac(**FREE, ideas={"before": keep, "after": adam_norm}),
    "kfac: damping 0.1": kfac(damping=0.1),
    "kfac: damping by layer 0.01": kfac(damping=0.01, damping_of="layer"),
    "kfac: damping by layer 0.1": kfac(damping=0.1, damping_of="layer"),
    "kfac: damping by layer 1": kfac(damping=1.0, damping_of="layer"),
    "kfac: every fourth token": kfac(position_every=4),
    "kfac: windows as rows": kfac(sharing="reduce"),
    "kfac: decay 0.1": kfac(SgdConfig(lr=1, momentum=0.9, weight_decay=0.1)),
    "kfac: windows as terms": kfac(ideas={"terms": False}),
    "kfac: clip 0.001": kfac(kl_clip=1e-3),
    "kfac: clip 0.01": kfac(kl_clip=1e-2),
    "kfac: damping 0.001": kfac(damping=1e-3),
    "kfac: AdamW inside": kfac(PLAIN_ADAMW),
    "kfac: AdamW inside, no clip": kfac(PLAIN_ADAMW, **FREE),
    "kfac before AdamW": before_adamw(),
    "kfac before AdamW: damping 1e-5": before_adamw(damping=1e-5),
    "kfac before AdamW: damping by layer 0.1": before_adamw(damping=0.1, damping_of="layer"),
    "muon": whole("muon"),
    "muon: 4 minimax rounds": whole("muon", muon={"polynomials": "minimax", "iterations": 4}),
    "muon: heads, 4 minimax rounds": whole(
        "muon", heads={"self_attn": 4}, muon={"polynomials": "minimax", "iterations": 4}
    ),
    "newton_muon": whole("newton_muon", factor_every=5, inverse_every=10),
    "soap": whole("soap", **OFTEN),
    "soap, short": whole("soap", soap={"sides": "short"}, **OFTEN),
    "soap, blocks": whole("soap", max_size=128, large="blocked", **OFTEN),
    "soap, K-FAC's factors": whole("soap", soap={"factors": "kfac"}, factor_every=5, inverse_every=10),
    "kl_shampoo": whole("kl_shampoo", **OFTEN),
    "shampoo": Arm(INNER, {"method": "shampoo", **OFTEN}, ends=False),
}  # fmt: skip
ARMS |= {
    f"{name}: attention by AdamW": replace(arm, kaisa={**arm.kaisa, "skip": ["self_attn"]})
    for name, arm in ARMS.items()
    if arm.kaisa is not None and not arm.ends
}


def trial(point: dict[str, Any]) -> dict[str, float]:
    """Do a point: the held-out loss after each fifth of the run, and CPU seconds of a step."""
    training = Training(point["task"], ARMS[point["arm"]], point["lr"], point["seed"], point["steps"])
    steps, found, cpu_s = point["steps"], {}, []
    for step in range(1, steps + 1):
        before = time.process_time()
        training.step()
        cpu_s.append(time.process_time() - before)
        if step * EVALUATIONS % steps < EVALUATIONS:
            found[f"loss_{step * EVALUATIONS // steps}"] = training.held_out()
    return {"held_out": found[f"loss_{EVALUATIONS}"], "cpu_s": sum(cpu_s) / steps, **found}
