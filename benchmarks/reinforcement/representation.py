"""What features learn of 5,000 random transitions: OFENet's dense towers beside towers of a plain perceptron.

    python -m benchmarks.reinforcement.representation --environment Hopper-v5 --seeds 3

Both predict the next observation, scaled by all that were collected: dense towers of 6 layers with 40 units each, and
perceptrons with as many layers and parameters. Same activation, norm, optimizer, batches and updates. A line of JSON
has the error on 1,000 transitions that nothing learned from, over that of "nothing changes", and the effective rank of
the features of observations with actions.
"""

import argparse
import json
import time

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from hpcopt.models.control.features import FeatureConfig, Features
from hpcopt.models.control.ofenet import OfeNetConfig
from hpcopt.models.control.unit_statistics import effective_rank

LAYERS, GROWTH = 6, 40
TRAIN, TEST = 5_000, 1_000
BATCH, RATE = 256, 3e-4
DENSE = OfeNetConfig(layers=LAYERS, growth=GROWTH, normalise=True)
Transitions = tuple[Tensor, Tensor, Tensor]


class PlainTowers(Features):
    """As OFENet, with towers that hand nothing on, of layers all of one width."""

    def __init__(self, observations: int, actions: int, width: int) -> None:
        super().__init__(observations, normalise=True)
        self.widths = width, width
        self.on_observations, self.on_actions = tower(observations, width), tower(width + actions, width)
        self.prediction = nn.Linear(width, observations)

    def observe(self, s: Tensor) -> Tensor:
        z_s: Tensor = self.on_observations(self.scaled(s))
        return z_s

    def act(self, z_s: Tensor, a: Tensor) -> Tensor:
        z_sa: Tensor = self.on_actions(torch.cat([z_s, a], -1))
        return z_sa

    def loss(self, s: Tensor, a: Tensor, next_s: Tensor) -> Tensor:
        return functional.mse_loss(self.prediction(self.act(self.observe(s), a)), self.scaled(next_s))


class PlainTowersConfig(FeatureConfig):
    """Perceptrons that predict the next observation, with as many parameters as OFENet has."""

    def build(self, observations: int, actions: int) -> PlainTowers:
        aim = parameters(DENSE.build(observations, actions))
        width = min(
            range(GROWTH, 4 * GROWTH), key=lambda w: abs(aim - parameters(PlainTowers(observations, actions, w)))
        )
        return PlainTowers(observations, actions, width)


def parameters(module: nn.Module) -> int:
    """Their number."""
    return sum(p.numel() for p in module.parameters())


def tower(inputs: int, width: int) -> nn.Sequential:
    """Layers, norms and activations as those of OFENet."""
    layers: list[nn.Module] = []
    for fan_in in [inputs] + [width] * (LAYERS - 1):
        layers += [nn.Linear(fan_in, width), nn.LayerNorm(width), nn.SiLU()]
    return nn.Sequential(*layers)


def collected(name: str, seed: int) -> Transitions:
    """Random transitions; next observations are those before a reset."""
    environment = gymnasium.make(name)
    environment.action_space.seed(seed)
    observed, _ = environment.reset(seed=seed)
    rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    while len(rows) < TRAIN + TEST:
        action = environment.action_space.sample()
        following, _, terminated, truncated, _ = environment.step(action)
        rows.append((observed, action, following))
        observed = environment.reset()[0] if terminated or truncated else following
    s, a, next_s = (torch.from_numpy(np.stack(column)).float() for column in zip(*rows, strict=True))
    return s, a, next_s


def learned(config: FeatureConfig, transitions: Transitions, updates: int, seed: int) -> dict[str, float]:
    """Train features, and judge them on what they have not seen."""
    torch.manual_seed(seed)
    seen, unseen = ([column[part] for column in transitions] for part in (slice(TRAIN), slice(TRAIN, None)))
    features = config.build(seen[0].shape[1], seen[1].shape[1])
    assert features.norm is not None
    features.norm.update(seen[0])
    optimizer = torch.optim.Adam(features.parameters(), lr=RATE)
    start_s = time.process_time()
    for _ in range(updates):
        rows = torch.randint(TRAIN, (BATCH,))
        loss = features.loss(*(column[rows] for column in seen))
        assert loss is not None
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    cpu_s = time.process_time() - start_s
    with torch.no_grad():
        s, a, next_s = unseen
        error = features.loss(s, a, next_s)
        unchanged = functional.mse_loss(features.scaled(s), features.scaled(next_s))
        rank = effective_rank(features.act(features.observe(s), a))
    assert error is not None
    return {
        "relative_error": float(error / unchanged),
        "effective_rank": rank,
        "width": features.widths[1],
        "parameters": parameters(features),
        "cpu_s": cpu_s,
    }


def main() -> None:
    """Measure."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--environment", default="Hopper-v5")
    p.add_argument("--updates", type=int, default=5_000)
    p.add_argument("--seeds", type=int, default=3)
    options = p.parse_args()
    torch.set_num_threads(1)
    kinds: dict[str, FeatureConfig] = {"dense": DENSE, "plain": PlainTowersConfig()}
    for seed in range(options.seeds):
        transitions = collected(options.environment, seed)
        for name, config in kinds.items():
            found = learned(config, transitions, options.updates, seed)
            print(json.dumps({"environment": options.environment, "towers": name, "seed": seed, **found}), flush=True)


if __name__ == "__main__":
    main()
