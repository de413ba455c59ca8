"""What is kept between the hooks, and for how long."""

import weakref

import pytest
import torch
from torch import Tensor, nn

from hpcopt.comm.world import alone
from hpcopt.solvers.kaisa.preconditioner import Kaisa


class Projections(nn.Module):
    """Four linear maps of one tensor, or each of a copy of its own."""

    def __init__(self, copies: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(6, 5)
        self.maps = nn.ModuleList([nn.Linear(5, 4), nn.Linear(5, 7), nn.Linear(5, 4, bias=False), nn.Linear(5, 4)])
        self.copies = copies

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).tanh()
        return torch.cat([m(h.clone() if self.copies else h) for m in self.maps], 1)


def factors_of(model: nn.Module, passes: int = 1, fisher: str = "empirical") -> dict[str, tuple[Tensor, Tensor]]:
    kaisa = Kaisa(model.double(), alone(), fisher=fisher)
    x = torch.randn(8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    outputs = model(x)
    if fisher == "sampled":
        kaisa.sample(outputs, "gaussian", generator=torch.Generator().manual_seed(2))
    loss = outputs.square().sum(1).mean()
    for i in range(passes):
        loss.backward(retain_graph=i < passes - 1)
    kaisa.step()
    return {name: (part["a"], part["g"]) for name, part in kaisa.rank_state_dict().items()}


@pytest.mark.parametrize("fisher", ["empirical", "sampled"])
def test_layers_that_share_an_input_have_the_factors_of_each_alone(fisher):
    shared, apart = (factors_of(Projections(copies), fisher=fisher) for copies in (False, True))
    for name in apart:
        for one, other in zip(shared[name], apart[name], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=0)


def test_two_passes_through_a_kept_graph_count_twice():
    (once, twice) = (factors_of(Projections(copies=False), passes) for passes in (1, 2))
    for name in once:
        torch.testing.assert_close(twice[name][0], once[name][0])  # a mean over rows
        torch.testing.assert_close(twice[name][1], 2 * once[name][1])  # a sum


def test_an_input_is_let_go_once_its_gradient_has_come():
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    Kaisa(model, alone())
    inputs = []
    model[2].register_forward_pre_hook(lambda module, args: inputs.append(weakref.ref(args[0])))
    outputs = model(torch.randn(5, 4))
    outputs.sum().backward()
    assert outputs.grad_fn is not None  # the graph is still there
    assert inputs[0]() is None
