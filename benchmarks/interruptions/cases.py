"""The cases: which job, and when and how it is interrupted, all drawn from a seed and the case's number."""

import random
from dataclasses import dataclass
from pathlib import Path

from benchmarks.interruptions import places
from benchmarks.interruptions.queue import Interruption

STEPS = 12
JOB = """\
[run]
name = "interrupted"
steps = {steps}
checkpoint_every = 3
evaluate_every = 4
log_every_s = 0.01
stall_s = 20
checkpoint_in_background = {background}

[workload]
data = "{data}"
batch = 64
model = {{name = "mlp", hidden = [16]}}
"""
METHODS = {  # TOML of the solver, and of the exchange
    "momentum": """
[solver]
optimizer = {name = "sgd", lr = 0.1, momentum = 0.9}
""",
    "residuals": """
[solver]
optimizer = {name = "adamw", lr = 0.01}
[exchange]
name = "two_phase"
codec = {name = "chunked_topk", bucket = 64, k = 16}
""",
    "local steps": """
[solver]
name = "local"
every = 5
fragments = 2
delay = 2
optimizer = {name = "sgd", lr = 0.1}
""",
    "K-FAC": """
[solver]
name = "kaisa"
optimizer = {name = "sgd", lr = 0.05, momentum = 0.9}
""",
}
ANYWHERE = [  # signal and target, and how often they are drawn
    ("USR1", "script", 3),
    ("TERM", "script", 2),
    ("KILL", "script", 2),
    ("USR1", "launcher", 2),
    ("TERM", "launcher", 2),
    ("KILL", "launcher", 3),
    ("USR1", "rank", 2),
    ("TERM", "rank", 2),
    ("KILL", "rank", 6),
    ("KILL", "half", 2),
    ("KILL", "all", 4),
]
TARGETS = {  # by launcher
    "mpirun": ANYWHERE,
    "srun": [
        *ANYWHERE,
        ("KILL", "host", 8),
        ("KILL", "slurmd", 3),
        ("USR1", "scancel --batch", 2),
        ("USR1", "scancel", 2),
        ("TERM", "scancel", 2),
        ("KILL", "scancel", 2),
        ("TERM", "scancel --full", 1),
        ("", "requeue", 3),
    ],
}
OF_SCRIPT = {  # the same, while the script requeues the job, and the longest delay in seconds
    "mpirun": ([("KILL", "script"), ("TERM", "script"), ("KILL", "all")], 2e-3),
    "srun": ([("KILL", "script"), ("TERM", "script"), ("KILL", "all"), ("KILL", "host"), ("", "requeue")], 50e-3),
}
COLD_SHARE = 0.08
LONGEST_DELAY_S = 2e-3  # from an aim to the signal


@dataclass(frozen=True)
class Setting:
    """A job on some ranks; what it does undisturbed is known."""

    method: str
    background: bool
    ranks: int

    def text(self, data: Path) -> str:
        """Its job.toml."""
        return JOB.format(steps=STEPS, background=str(self.background).lower(), data=data) + METHODS[self.method]


SETTINGS = [Setting("momentum", background=True, ranks=4)] + [
    Setting(method, background, ranks) for method in METHODS for background, ranks in ((True, 2), (False, 3))
]


@dataclass(frozen=True)
class Case:
    """Some interruptions of a job, of one start after the other."""

    setting: Setting
    cold: bool
    interruptions: list[Interruption]


def draw(
    seed: int,
    number: int,
    settings: list[Setting],
    cold_share: float,
    lasts_s: dict[bool, float],
    visits: dict[Setting, dict[str, list[int]]],
    launcher: str = "mpirun",
) -> Case:
    """Draw a case.

    Args:
        seed, number: what decides.
        settings: to draw one of.
        cold_share: of the cases have a first start that imports for itself.
        lasts_s: how long an undisturbed start takes, cold or not.
        visits: of each place by each rank, undisturbed.
        launcher: of the ranks.
    """
    rng = random.Random(f"{seed} {number}")
    setting, cold = rng.choice(settings), rng.random() < cold_share
    count = rng.choice([1, 1, 2, 3])
    return Case(
        setting, cold, [_interruption(rng, setting, lasts_s, visits, launcher, cold and n == 0) for n in range(count)]
    )


def _interruption(
    rng: random.Random,
    setting: Setting,
    lasts_s: dict[bool, float],
    visits: dict[Setting, dict[str, list[int]]],
    launcher: str,
    cold: bool,
) -> Interruption:
    targets, longest_s = TARGETS[launcher], LONGEST_DELAY_S
    signal, target, _ = rng.choices(targets, [often for _, _, often in targets])[0]
    rank = rng.randrange(setting.ranks)
    if cold or rng.random() < 0.4:
        return Interruption(signal, _named(target, rank), rng.uniform(0, lasts_s[cold]))
    place = rng.choice([*places.PLACES, *places.OF_SCRIPT])
    if place in places.OF_SCRIPT:
        choice, longest_s = OF_SCRIPT[launcher]
        (signal, target), aim, rank = rng.choice(choice), place, 0
    else:
        seen = visits[setting][place]
        if not seen[rank]:  # what rank 0 alone does
            rank = 0
        aim = f"{place}/{rank}/{rng.randint(1, max(1, seen[rank]))}"
    return Interruption(signal, _named(target, rank), rng.uniform(0, longest_s), aim)


def _named(target: str, rank: int) -> str:
    return f"{target} {rank}" if target in ("rank", "host", "slurmd") else target
