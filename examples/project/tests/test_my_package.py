"""What training relies on: ``python -m pytest`` in the project's folder."""

import torch

from my_package.data import Spirals
from my_package.network import Net


def test_a_sample_goes_through_the_network():
    point, label = Spirals(samples=10)[3]
    logits = Net()(point[None])
    assert logits.shape == (1, 3)
    assert 0 <= label < 3


def test_the_same_seed_gives_the_same_points_on_every_rank():
    assert torch.equal(Spirals(seed=1).points, Spirals(seed=1).points)
    assert not torch.equal(Spirals(seed=1).points, Spirals(seed=2).points)


def test_the_network_can_learn_the_spirals():
    torch.manual_seed(0)
    data, net = Spirals(samples=300), Net()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(400):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(data.points), data.labels).backward()
        optimizer.step()
    assert (net(data.points).argmax(1) == data.labels).float().mean() > 0.95
