"""Dense features predict what comes next better than a perceptron of as many layers and parameters, and have a higher
rank: on 5,000 random transitions of a pendulum, of which the last 1,000 are unseen (arXiv:2003.01629; measured at size
by benchmarks/reinforcement/representation.py).
"""

import math

import pytest
import torch
from torch.nn import functional

from hpcopt.models.control.ofenet import OfeNetConfig
from hpcopt.models.control.perceptrons import MlpBodyConfig
from hpcopt.models.control.unit_statistics import effective_rank

LAYERS, GROWTH, PLAIN, SEEN, UPDATES = 4, 10, 21, 4000, 200


def transitions(count=5000):
    """A rod of mass and length 1, pushed by up to 2 for 0.05 s; observed as cosine, sine and speed."""
    angle, speed = (torch.rand(2, count) * 2 - 1) * torch.tensor([[math.pi], [8.0]])
    push = torch.rand(count) * 4 - 2
    faster = (speed + 0.05 * (15 * angle.sin() + 3 * push)).clamp(-8, 8)
    turned = angle + 0.05 * faster
    s, next_s = (torch.stack([a.cos(), a.sin(), v / 8], 1) for a, v in ((angle, speed), (turned, faster)))
    return s, push[:, None], next_s


def learn(parameters, loss, seen):
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    for _ in range(UPDATES):
        rows = torch.randint(SEEN, (128,))
        optimizer.zero_grad()
        loss(*(column[rows] for column in seen)).backward()
        optimizer.step()


@pytest.mark.parametrize("seed", [0, 1])
def test_dense_features_predict_better_and_have_a_higher_rank_than_a_perceptron(seed):
    torch.manual_seed(seed)
    columns = transitions()
    seen, unseen = [column[:SEEN] for column in columns], [column[SEEN:] for column in columns]
    dense = OfeNetConfig(layers=LAYERS, growth=GROWTH, norm="none").build(3, 1)
    body = MlpBodyConfig(width=PLAIN, depth=2 * LAYERS, activation="silu").build(4)
    head = torch.nn.Linear(body.width, 3)
    plain = torch.nn.Sequential(body, head)
    sizes = [sum(p.numel() for p in network.parameters()) for network in (dense, plain)]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.05)

    def plain_loss(s, a, next_s):
        return functional.mse_loss(plain(torch.cat([s, a], 1)), next_s)

    learn(dense.parameters(), dense.loss, seen)
    learn(plain.parameters(), plain_loss, seen)
    with torch.no_grad():
        s, a, next_s = unseen
        assert dense.prediction_error(s, a, next_s) < plain_loss(s, a, next_s)
        assert effective_rank(dense.act(dense.observe(s), a)) > effective_rank(body(torch.cat([s, a], 1)))
        assert dense.prediction_error(s, a, next_s) < 0.1 * functional.mse_loss(s, next_s)
