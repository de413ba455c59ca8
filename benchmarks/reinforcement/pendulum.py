"""SAC on Pendulum: hpcopt beside stable-baselines3, at the settings that rl-baselines3-zoo has for it.

    python -m benchmarks.reinforcement.pendulum run --steps 20000 --seeds 5     # a line of JSON a run, once each
    python -m benchmarks.reinforcement.pendulum table
    python -m benchmarks.reinforcement.pendulum speed                           # steps of both, in turns

Both learn in turns, seed by seed, each in a process of its own with one thread, as their users run them: hpcopt's keeps
memory as its training command does. Two layers of 256 units, a rate of 1e-3, and otherwise the defaults of both. The
returns are of 20 episodes without exploration, whose seeds are the same for all. Seconds are of training alone. Give
the processes a core of their own (`taskset -c 0`).
"""

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

from hpcopt.kept_memory import keep_memory
from hpcopt.optim import AdamWConfig
from hpcopt.report.interquartile import bootstrap_interval, interquartile_mean
from hpcopt.runs import open_run
from hpcopt.shapes import Context, Task
from hpcopt.solvers.actor_critic.solver import ActorCriticConfig
from hpcopt.train import main as train
from hpcopt.workloads.control.workload import ControlConfig

ENVIRONMENT, RATE = "Pendulum-v1", 1e-3
EPISODES, FIRST_SEED = 20, 10_000
BLOCK, WARM = 50, 3  # steps of a block; blocks before those that count
RESULTS = Path(__file__).with_name("pendulum.jsonl")
JOB = Path(__file__).parents[2] / "jobs" / "pendulum.toml"
Act = Callable[[np.ndarray], np.ndarray]
APART = multiprocessing.get_context("spawn")


def ours(steps: int, seed: int) -> dict[str, float]:
    """Train by a job, and evaluate what its checkpoint holds."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {"run.steps": steps, "run.evaluate_every": steps, "run.seed": seed, "workload.test": 1}
        settings["solver.optimizer.lr"] = RATE
        arguments = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        took, code = timed(lambda: train([str(JOB), "--run-dir", folder, *arguments]))
        assert code == 0
        model = open_run(Path(folder)).model.eval()

    @torch.inference_mode()
    def act(observed: np.ndarray) -> np.ndarray:
        action: np.ndarray = 2 * model(torch.from_numpy(observed[None]))[0].numpy()
        return action

    return took | {"return": mean_return(act)}


def peer(steps: int, seed: int) -> dict[str, float]:
    """Train stable-baselines3's SAC."""
    from stable_baselines3 import SAC

    agent = SAC("MlpPolicy", gymnasium.make(ENVIRONMENT), learning_rate=RATE, seed=seed, device="cpu")
    took, _ = timed(lambda: agent.learn(steps))
    return took | {"return": mean_return(lambda observed: agent.predict(observed, deterministic=True)[0])}


PROGRAMS: dict[str, Callable[[int, int], dict[str, float]]] = {"hpcopt": ours, "stable-baselines3": peer}


def timed(call: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """Seconds of a call, by the clock and of the processor, and what it gave."""
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    given = call()
    return {"wall_s": time.perf_counter() - start_s, "cpu_s": time.process_time() - start_cpu_s}, given


def mean_return(act: Act) -> float:
    """Of the evaluation episodes."""
    environment, returns = gymnasium.make(ENVIRONMENT), []
    for episode in range(EPISODES):
        observed, _ = environment.reset(seed=FIRST_SEED + episode)
        total, over = 0.0, False
        while not over:
            observed, reward, terminated, truncated, _ = environment.step(act(observed))
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    return statistics.mean(returns)


def lines(path: Path) -> list[dict[str, Any]]:
    """What was measured so far."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def run(options: argparse.Namespace) -> None:
    """Make the runs that are not there yet."""
    done = {(row["program"], row["steps"], row["seed"]) for row in lines(options.file)}
    for seed in range(options.seeds):
        for program, call in PROGRAMS.items():
            if (program, options.steps, seed) not in done:
                with APART.Pool(1, torch.set_num_threads, (1,)) as own:
                    found = own.apply(call, (options.steps, seed))
                row = {"program": program, "steps": options.steps, "seed": seed, **found}
                with options.file.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")


def table(options: argparse.Namespace) -> None:
    """A row a program: returns with their interquartile mean and its interval, and seconds beside the peer's."""
    rows = lines(options.file)
    print("| steps | program | seeds | return of each | interquartile mean | processor's s | over the peer's |")
    print("|---|---|---|---|---|---|---|")
    for steps in sorted({row["steps"] for row in rows}):
        mine = {name: [r for r in rows if (r["program"], r["steps"]) == (name, steps)] for name in PROGRAMS}
        base_s = statistics.median([row["cpu_s"] for row in mine["stable-baselines3"]] or [float("nan")])
        for name, own in mine.items():
            if not own:
                continue
            scores = np.array([[row["return"]] for row in own])
            low, high = bootstrap_interval(scores)
            each = ", ".join(f"{row['return']:.0f}" for row in own)
            cpu_s = statistics.median(row["cpu_s"] for row in own)
            middle = f"{float(interquartile_mean(scores)):.0f} ({low:.0f} to {high:.0f})"
            print(f"| {steps:,} | {name} | {len(own)} | {each} | {middle} | {cpu_s:.0f} | {cpu_s / base_s:.2f} |")


def stepping() -> Callable[[], Any]:
    """hpcopt's steps, a block a call."""
    keep_memory()
    context = Context(steps=1_000_000)  # of a rate that stays
    workload = ControlConfig(environment=ENVIRONMENT).build(context)
    solver = ActorCriticConfig(optimizer=AdamWConfig(lr=RATE, weight_decay=0.0)).build(
        Task(workload.model, workload.loss, simulation=workload.simulation()), context
    )

    def block() -> None:
        for _ in range(BLOCK):
            solver.step(None)

    return block


def peer_stepping() -> Callable[[], Any]:
    """stable-baselines3's."""
    from stable_baselines3 import SAC

    agent = SAC("MlpPolicy", gymnasium.make(ENVIRONMENT), learning_rate=RATE, seed=0, device="cpu")
    return lambda: agent.learn(BLOCK, reset_num_timesteps=False)


def blocks(make: Callable[[], Callable[[], Any]], count: int, pipe: Connection) -> None:
    """Make a block whenever somebody asks, and tell its seconds."""
    torch.set_num_threads(1)
    block = make()
    for _ in range(count):
        pipe.recv()
        pipe.send(timed(block)[0])


def speed(options: argparse.Namespace) -> None:
    """Milliseconds of a step, each with an update, block by block in turns; a line of JSON with medians."""
    pipes, count, found = dict[str, Connection](), options.blocks + WARM, dict[str, list[dict[str, float]]]()
    for name, make in {"hpcopt": stepping, "stable-baselines3": peer_stepping}.items():
        pipes[name], theirs = APART.Pipe()
        APART.Process(target=blocks, args=(make, count, theirs), daemon=True).start()
        found[name] = []
    for _ in range(count):
        for name, pipe in pipes.items():
            pipe.send(None)
            found[name].append(pipe.recv())
    medians = {
        f"{name} {what}": 1e3 / BLOCK * statistics.median(block[f"{what}_s"] for block in each[WARM:])
        for name, each in found.items()
        for what in ("cpu", "wall")
    }
    print(json.dumps(medians))


def main() -> None:
    """Run or tell."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=("run", "table", "speed"))
    p.add_argument("--steps", type=int, default=20_000)
    p.add_argument("--seeds", type=int, default=5)
    p.add_argument("--blocks", type=int, default=20, help=f"of {BLOCK} steps, of speed (%(default)s)")
    p.add_argument("--file", type=Path, default=RESULTS, help="where the lines are (%(default)s)")
    options = p.parse_args()
    {"run": run, "table": table, "speed": speed}[options.what](options)


if __name__ == "__main__":
    main()
