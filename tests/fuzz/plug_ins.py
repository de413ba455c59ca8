"""Modules of somebody's: a part of every family that works, and ways in which it may not."""

import re
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.job_files import Tree, example_job

HEAD = """\
import os, random, sys, threading, warnings
import numpy as np
import torch
from torch import nn
from hpcopt.compress import Codec
from hpcopt.exchange import ExchangeConfig, TwoPhaseConfig
from hpcopt.exchange.reducer import Reducer
from hpcopt.models.config import ImageModelConfig
from hpcopt.optim import OptimizerConfig, ScheduleConfig
from hpcopt.shapes import Solver, SolverConfig, StepStats, TensorBatch, Workload, WorkloadConfig

"""

PARTS = {
    "network": """\
class Part(nn.Module):
    def __init__(self, width=3):
        super().__init__()
        self.inner, self.outer = nn.Linear(4, width), nn.Linear(width, 2)
    def forward(self, x):
        return self.outer(torch.tanh(self.inner(x)))
""",
    "train": """\
class Part(torch.utils.data.Dataset):
    def __init__(self, rows=16):
        self.rows = rows
    def __len__(self):
        return self.rows
    def __getitem__(self, index):
        return torch.full((4,), index / 16), index % 2
""",
    "stream": """\
class Part(torch.utils.data.IterableDataset):
    at = 0
    def __iter__(self):
        while self.at < 40:
            self.at += 1
            yield torch.full((4,), self.at / 40), self.at % 2
    def state_dict(self):
        return {"at": self.at}
    def load_state_dict(self, state):
        self.at = state["at"]
""",
    "loss": """\
def Part(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets)
""",
    "scores": """\
class Part:
    better = "higher"
    def update(self, outputs, targets):
        return {"right": (outputs.argmax(1) == targets).sum(), "all": torch.tensor(len(targets))}
    def finish(self, sums):
        return sums["right"] / sums["all"]
""",
    "workload": """\
class Part(WorkloadConfig):
    batch: int = 4
    def build(self, context):
        return Work()
class Work(Workload):
    scores = {"test_loss": "lower"}
    batch, train_samples, test_samples = 4, 16, 4
    def __init__(self):
        self.model = nn.Linear(4, 2)
        self.loss = lambda model, batch: nn.functional.cross_entropy(model(batch.tensors["x"]), batch.tensors["y"])
    def some(self, rank, size):
        index = torch.arange(4)[rank::size]
        return TensorBatch({"x": torch.ones(len(index), 4), "y": index % 2}, index, 4)
    def train_batches(self, rank, size, start):
        while True:
            yield self.some(rank, size)
    def test_batches(self, rank, size):
        yield self.some(rank, size)
    def score(self, model, batch):
        return {"test_loss": self.loss(model, batch) * len(batch)}
    def finish(self, sums):
        return {name: float(value) / 4 for name, value in sums.items()}
    def state_dict(self):
        return None
    def load_state_dict(self, parts):
        return None
""",
    "model": """\
class Part(ImageModelConfig):
    width: int = 3
    def build(self, images, classes):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, self.width), nn.Linear(self.width, classes))
""",
    "solver": """\
class Part(SolverConfig):
    lr: float = 0.1
    def build(self, task, context):
        return Solve(self, task, context)
class Solve(Solver):
    data_rank, data_size = 0, 1
    def __init__(self, config, task, context):
        self.model, self.loss, self.lr = task.model, task.loss, config.lr
    def step(self, batch):
        loss = self.loss(self.model, batch)
        loss.backward()
        with torch.no_grad():
            for p in self.model.parameters():
                p.sub_(p.grad, alpha=self.lr)
                p.grad = None
        return StepStats(loss.item(), self.lr, {"half": 0.5})
    def gather(self):
        return None
    def plan(self, flops):
        return {"flops": str(flops)}
    def state_dict(self):
        return {"model": self.model.state_dict()}
    def rank_state_dict(self):
        return {"own": torch.ones(3)}
    def load_state_dict(self, shared, parts):
        self.model.load_state_dict(shared["model"])
""",
    "optimizer": """\
class Part(OptimizerConfig):
    lr: float = 0.1
    def build(self, parameters):
        return Optimize(parameters, {"lr": self.lr})
class Optimize(torch.optim.Optimizer):
    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad, alpha=group["lr"])
                    self.state[p]["seen"] = torch.ones_like(p)
    def state_dict(self):
        return super().state_dict()
    def load_state_dict(self, state):
        return super().load_state_dict(state)
""",
    "schedule": """\
class Part(ScheduleConfig):
    final: float = 0.5
    def decayed(self, progress, rest):
        return self.final
""",
    "exchange": """\
class Part(ExchangeConfig):
    size: int = 1
    def build(self, seed):
        return Reduce()
class Reduce(Reducer):
    def reduce(self, transport, bucket, step):
        return None
    def planned_bytes(self, bucket, size, rank):
        return 8
    def state_dict(self):
        return {"a": torch.ones(2)}
    def load_state_dict(self, parts, rank, size):
        return None
    def metrics(self):
        return {"bits": 1.0}
""",
    "codec": """\
class Part(Codec):
    scale: float = 1.0
    def max_bytes(self, n):
        return 4 * n
    def _encode(self, x, seed, first, payload):
        payload[: 4 * x.size] = x.view(np.uint8)
        return 4 * x.size
    def _decode(self, payload, out, weight, add):
        values = payload[: 4 * out.size].view(np.float32) * np.float32(weight)
        out[:] = out + values if add else values
    def contraction(self, n):
        return 0.9
""",
}

FINE = {
    "network": "tests_fuzz_fine:Net",
    "train": "tests_fuzz_fine:Rows",
    "loss": "cross_entropy",
}

VALUES = (
    *("None", "...", "NotImplemented", "0", "-1", "7", "2**70", "10**400", "True", "1.5", "1e300", "float('nan')"),
    *(
        "float('inf')",
        "''",
        "'text'",
        "'\\x1b[31m'",
        "'\\udc80'",
        "b'x'",
        "[]",
        "()",
        "{}",
        "set()",
        "[None]",
        "(1, 2)",
    ),
    *("{'a': 1}", "{1: 2}", "{'a': object()}", "object()", "type", "Part", "print", "lambda *a, **k: None", "sys"),
    *("torch.ones(())", "torch.ones(3)", "torch.zeros(0)", "torch.ones(2, 2)", "torch.tensor(float('nan'))"),
    *("torch.full((3,), float('inf'))", "torch.ones(4, dtype=torch.complex64)", "torch.ones(1, dtype=torch.int8)"),
    *("torch.ones(2, device='meta')", "torch.ones(3).bfloat16()", "torch.eye(3).to_sparse()", "nn.Linear(2, 2)"),
    *("np.ones(3)", "np.float32(2)", "np.array(['a'])", "np.array([object()])", "StepStats(None)", "StepStats('x')"),
    *("StepStats(0.1, 'x', {1: 2})", "StepStats(0.1, None, {'a': 'b'})", "StepStats(0.1, None, {'a': 1e400})"),
    *("StepStats(0.1, None, {}, {'t': 1})", "iter(())", "(x for x in [1])", "range(3)", "nn.Linear", "WorkloadConfig"),
    *("TensorBatch({}, torch.zeros(0), 0)", "TensorBatch({'x': None}, None, -1)", "{'test_loss': 'higher'}"),
)
ACTS = (
    *("raise ValueError('theirs')", "raise KeyError('theirs')", "raise SystemExit(3)", "sys.exit('theirs')"),
    *("raise StopIteration", "raise OSError('theirs')", "raise MemoryError", "raise RecursionError", "1 / 0"),
    *("raise AssertionError", "raise GeneratorExit", "raise Exception('\\x1b[31m\\udc80')", "raise BaseException"),
    *("print('theirs')", "print('theirs', file=sys.stderr)", "warnings.warn('theirs')"),
    *(
        "torch.manual_seed(0)",
        "os.chdir('/')",
        "os.environ.clear()",
        "sys.path.clear()",
        "sys.setrecursionlimit(200)",
        "random.seed(0)",
    ),
    *(
        "raise type('Odd', (Exception,), {'__str__': lambda self: 1 / 0})",
        "raise UnicodeDecodeError('a', b'', 0, 1, '')",
    ),
    *("np.seterr(all='raise')", "sys.modules[__name__] = None", "del sys.modules[__name__]", "import nowhere.at_all"),
)
FIELDS = (
    *(
        "name: str = 'sgd'",
        "name: str = 'kaisa'",
        "name: int = 3",
        "odd: object",
        "odd: 'Nowhere'",
        "odd: int = 'text'",
    ),
    *(
        "odd: torch.Tensor = None",
        "odd: float = float('nan')",
        "odd: list[int] = [1]",
        "model_config = 3",
        "lr: str = 'x'",
    ),
    *("odd: int", "__slots__ = ()", "gives = 3", "needs = None", "phases = 3", "phases = ('forward', '\\x1b[31m')"),
    *("lockstep = None", "optimizers = 3", "pipelined = 'yes'", "model = None", "data_size = 0", "data_rank = 'x'"),
    *("scores = None", "scores = {'a': 'up'}", "batch = 'many'", "test_samples = None", "grain = 0", "grain = 3"),
    *("train_samples = -1", "steps_per_epoch = 0", "steps_per_epoch = 'x'", "better = 'up'", "linear = True"),
    *("linear = 7", "bucket: int = 0", "bucket: int = -8", "wire_version = None", "takes = 5", "choices = 3"),
)
METHODS = (
    *("def {}(self): raise ValueError('theirs')", "def {}(self, *a, **k): return None", "{} = None", "{} = 3"),
    *("async def {}(self, *a, **k): return None", "{} = property(lambda self: 1 / 0)"),
)
SPECIAL = (
    *(
        "__init__",
        "__repr__",
        "__str__",
        "__eq__",
        "__hash__",
        "__getattr__",
        "__class_getitem__",
        "__bool__",
        "__len__",
    ),
    *(
        "for_tensor",
        "variance",
        "gain",
        "warm",
        "prepare",
        "kind",
        "finish_step",
        "verify",
        "metrics",
        "factor",
        "plan",
    ),
    *(
        "model_dump",
        "parameters",
        "state_dict",
        "named_parameters",
        "train",
        "to",
        "zero_grad",
        "check_ranks",
        "folder",
    ),
)
SOURCES = (
    "",
    "def f(:",
    "\0",
    "x = " + "(" * 400,
    "Part = Part",
    "raise",
    "\ufeffpass",
    "# coding: nowhere\n",
    "Part = 3\n",
)
SWITCHES = ("torch.set_default_dtype(torch.float64)", "torch.set_grad_enabled(False)")
NAMES = ("Part", "Part.Inner", "Nowhere", "nn", "Work", "Solve", "Part ", "part\x1b", "P\u00e4rt", "__doc__", "os", "")


@dataclass(frozen=True)
class Plugin:
    """A module of somebody's.

    Attributes:
        family: of the part that it has.
        name: the part's name in it.
        source: its text.
        settings: keys of the part's section.
    """

    family: str
    name: str
    source: str
    settings: Tree

    def job(self, module: str) -> Tree:
        """A job that names the part, and has fine ones beside."""
        job: Tree = example_job(checkpoint_every=1)
        place = f"{module}:{self.name}"
        part = {"name": place, **self.settings}
        match self.family:
            case "network" | "train" | "stream" | "loss" | "scores":
                key = "train" if self.family == "stream" else self.family
                job["workload"] = {"name": "torch", "batch": 4, **FINE, "test": FINE["train"]}
                job["workload"][key] = [place] if key == "scores" else place
                if self.settings and key != "scores":
                    job["workload"][f"{key}_arguments"] = self.settings
            case "workload" | "solver" | "exchange":
                job[self.family] = part
            case "model":
                job["workload"]["model"] = part
            case "optimizer" | "schedule":
                job["solver"] = {"name": "data_parallel", self.family: part}
            case "codec":
                job["exchange"] = {"name": "two_phase", "codec": part}
        return job


@st.composite
def plug_ins(draw: st.DrawFn, wrong: int = 2) -> Plugin:
    """A good part with up to so many things wrong."""
    family = draw(st.sampled_from(sorted(PARTS)))
    lines, settings, name = PARTS[family].splitlines(), {}, "Part"
    for _ in range(draw(st.integers(1, wrong))):
        way = draw(st.sampled_from([*["value", "act"] * 4, "field", "method", "missing", "source", "name", "setting"]))
        heads = [number for number, line in enumerate(lines) if re.match(r"\s*def ", line)]
        classes = [number for number, line in enumerate(lines) if line.startswith("class ")]
        if way in ("value", "act") and heads:
            at = draw(st.sampled_from(heads))
            indent = " " * (4 + len(lines[at]) - len(lines[at].lstrip()))
            returned = f"return {draw(st.sampled_from(VALUES))}"
            lines.insert(at + 1, indent + (returned if way == "value" else draw(st.sampled_from(ACTS))))
        elif way == "field" and classes:
            lines.insert(draw(st.sampled_from(classes)) + 1, "    " + draw(st.sampled_from(FIELDS)))
        elif way == "method" and classes:
            method = draw(st.sampled_from(METHODS)).format(draw(st.sampled_from(SPECIAL)))
            lines.insert(draw(st.sampled_from(classes)) + 1, f"    {method}")
        elif way == "missing":
            del lines[draw(st.integers(0, len(lines) - 1)) :][: draw(st.integers(1, 4))]
        elif way == "name":
            name = draw(st.sampled_from(NAMES))
        elif way == "setting":
            settings = {draw(st.sampled_from(["width", "rows", "size", "scale", "odd", "lr"])): draw(plain())}
        else:
            extra = draw(st.sampled_from([*SOURCES, *SWITCHES, *ACTS, *(f"Part = {value}" for value in VALUES)]))
            lines.insert(draw(st.sampled_from([0, len(lines)])), extra)
    return Plugin(family, name, HEAD + "\n".join(lines) + "\n", settings)


def plain() -> st.SearchStrategy[Any]:
    """A value of a section's key."""
    return st.sampled_from([0, -1, 2, 2**62, 0.5, float("nan"), "text", "off", True, [], {}])
