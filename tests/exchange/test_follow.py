"""What a loop of one's own may do to parameters and gradients between the exchange's making and its ``finish``."""

import copy

import pytest
import torch
from torch import nn

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World, alone
from hpcopt.compress import Natural
from hpcopt.errors import HpcoptError, NonFiniteError, PeerError, UnsupportedError
from hpcopt.exchange import Exchange, RingConfig, TwoPhaseConfig, VoteConfig

torch.manual_seed(0)
MODEL = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))


def on_ranks(size: int, step, config=None, **options):
    """What ``step(model, exchange, rank)`` gives on each rank."""
    config = config or RingConfig()

    def program(transport):
        model = copy.deepcopy(MODEL)
        return step(model, Exchange(World(transport), model, config, **options), transport.rank)

    return run_ranks(size, program)


def loss(model: nn.Module, rank: int) -> torch.Tensor:
    dtype = next(model.parameters()).dtype
    return model(torch.full((2, 3), rank + 1.0, dtype=dtype)).sum()


def gradients(model: nn.Module) -> list[torch.Tensor]:
    return [p.grad.clone() for p in model.parameters()]


def summed(size: int) -> list[torch.Tensor]:
    model = copy.deepcopy(MODEL)
    for rank in range(size):
        loss(model, rank).backward()
    return gradients(model)


@pytest.mark.parametrize("overlap", [True, False])
def test_gradients_put_there_by_hand_are_summed(overlap):
    def step(model, exchange, rank):
        model[0].weight.grad, *_ = torch.autograd.grad(loss(model, rank), list(model.parameters()))
        exchange.finish()
        return gradients(model)

    for weight, *others in on_ranks(3, step, RingConfig(overlap=overlap)):
        torch.testing.assert_close(weight, summed(3)[0])
        assert not any(gradient.any() for gradient in others)


def test_gradients_replaced_after_they_were_sent_are_refused_and_the_next_step_goes():
    def step(model, exchange, rank):
        loss(model, rank).backward()
        model[0].weight.grad = torch.ones(3, 3)
        with pytest.raises(UnsupportedError, match=r"change gradients after finish\(\)"):
            exchange.finish()
        model.zero_grad()
        loss(model, rank).backward()
        exchange.finish()
        return gradients(model)

    for found in on_ranks(2, step):
        torch.testing.assert_close(found, summed(2))


def test_an_unfrozen_layer_is_refused_by_name_and_a_new_exchange_takes_it():
    def program(transport):
        model, world = copy.deepcopy(MODEL), World(transport)
        model[0].requires_grad_(False)
        exchange = Exchange(world, model, RingConfig())
        model[0].requires_grad_(True)
        loss(model, transport.rank).backward()
        with pytest.raises(UnsupportedError, match=r"0.weight was frozen: remove\(\) it"):
            exchange.finish()
        exchange.remove()
        model.zero_grad()
        exchange = Exchange(world, model, RingConfig())
        loss(model, transport.rank).backward()
        exchange.finish()
        return gradients(model)

    for found in run_ranks(2, program):
        torch.testing.assert_close(found, summed(2))


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("zero", [True, False])
def test_a_frozen_layer_is_left_as_plain_torch_leaves_it(named, zero):
    model = copy.deepcopy(MODEL)
    exchange = Exchange(alone(), model.named_parameters() if named else model, RingConfig())
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    for step in range(3):
        if step == 2:
            model[0].requires_grad_(False)
            before = copy.deepcopy(model.state_dict())
        exchange.zero() if zero else optimizer.zero_grad()
        loss(model, 0).backward()
        exchange.finish()
        optimizer.step()
    assert torch.equal(model[0].weight, before["0.weight"]) and not torch.equal(model[1].weight, before["1.weight"])


def test_a_frozen_parameter_does_not_move_by_a_vote():
    def step(model, exchange, rank):
        signum = torch.optim.SGD(model.parameters(), 0.1)
        model[0].requires_grad_(False)
        loss(model, rank).backward()
        exchange.finish()
        signum.step()
        return model[0].weight.detach()

    assert all(torch.equal(weight, MODEL[0].weight) for weight in on_ranks(3, step, VoteConfig()))


def test_parameters_that_were_replaced_by_their_like_are_taken_over():
    def step(model, exchange, rank):
        loss(model, rank).backward()
        exchange.finish()
        model.load_state_dict({name: tensor.clone() for name, tensor in MODEL.state_dict().items()}, assign=True)
        found = []
        for _ in range(2):  # the first without a hook, the second with one
            model.zero_grad()
            loss(model, rank).backward()
            exchange.finish()
            found.append(gradients(model))
        return found

    for twice in on_ranks(2, step):
        for found in twice:
            torch.testing.assert_close(found, summed(2))


def cast(model: nn.Module) -> None:
    model.double()


def swap_the_head(model: nn.Module) -> None:
    model[1] = nn.Linear(3, 2)


def grow(model: nn.Module) -> None:
    model.append(nn.Linear(1, 1))


def untie(model: nn.Module) -> None:
    model[1].weight = nn.Parameter(torch.ones(3, 3))


@pytest.mark.parametrize("backward_first", [True, False])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (cast, r"0.weight was \(3, 3\) torch.float32 on cpu and is \(3, 3\) torch.float64"),
        (swap_the_head, r"1.weight was \(1, 3\)"),
        (grow, r"the model had other parameters than now: 2.bias, 2.weight"),
    ],
)
def test_what_would_need_other_buckets_is_refused(change, words, backward_first):
    def step(model, exchange, rank):
        exchange.zero()
        if backward_first:
            loss(model, rank).backward()
        change(model)
        if not backward_first:
            loss(model, rank).backward()
        with pytest.raises(UnsupportedError, match=words):
            exchange.finish()

    on_ranks(2, step)


def test_tied_parameters_that_part_are_refused():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    exchange = Exchange(alone(), model, RingConfig())
    untie(model)
    with pytest.raises(UnsupportedError, match=r"1.weight was the same parameter as another one"):
        exchange.finish()


def test_another_memory_format_changes_nothing():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(1))
    x = torch.ones(2, 3, 5, 5)
    model(x)
    exchange = Exchange(alone(), model, RingConfig())
    for step in range(2):
        exchange.zero()
        if step:
            model.to(memory_format=torch.channels_last)
        model(x).sum().backward()
        exchange.finish()
    found = gradients(model)
    model.zero_grad()
    reference = copy.deepcopy(model)
    reference(x).sum().backward()
    torch.testing.assert_close(found, gradients(reference), check_stride=False)


def test_sparse_gradients_are_made_dense():
    torch.manual_seed(0)
    model = nn.Embedding(10, 3, sparse=True)

    def program(transport):
        own = copy.deepcopy(model)
        exchange = Exchange(World(transport), own, RingConfig())
        exchange.zero(backwards=2)
        for _ in range(2):
            own(torch.tensor([1, transport.rank])).sum().backward()
        exchange.finish()
        return own.weight.grad

    for gradient in run_ranks(2, program):
        assert gradient.sum(1).tolist() == [6, 18, *[0] * 8]


def test_complex_gradients_are_summed_and_have_a_norm():
    def program(transport):
        p = nn.Parameter(torch.ones(4, dtype=torch.complex64))
        exchange = Exchange(World(transport), [("p", p)], RingConfig())
        p.abs().sum().backward()
        exchange.finish()
        return float(exchange.norm())

    assert run_ranks(2, program) == pytest.approx([4.0, 4.0])


def test_no_parameters_have_a_norm_of_zero():
    exchange = Exchange(alone(), [], RingConfig())
    exchange.zero()
    exchange.finish()
    assert float(exchange.norm()) == 0.0 and exchange.planned_bytes() == 0


@pytest.mark.parametrize("overlap", [True, False])
def test_after_an_error_that_was_caught_the_next_step_goes_as_ever(overlap):
    """Finite values that are too large are refused on all ranks; a program may leave out that step."""
    config = TwoPhaseConfig(codec=Natural(), bucket_mb=1e-6, overlap=overlap)

    def step(model, exchange, rank):
        found = []
        for k in range(3):
            model.zero_grad()
            (loss(model, rank) * (2e38 if k == 1 and rank == 1 else 1.0)).backward()
            try:
                exchange.finish()
                found.append(k)
            except NonFiniteError:
                pass
        return found, exchange.rank_state_dict()["step"]

    assert on_ranks(2, step, config) == [([0, 2], 3)] * 2


def test_a_step_given_up_in_its_backward_pass_ends_at_the_next_zero():
    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(_ctx, x):
            return x.clone()

        @staticmethod
        def backward(_ctx, _gradient):
            raise RuntimeError("no memory")

    def step(model, exchange, rank):
        exchange.zero()
        with pytest.raises(RuntimeError, match="no memory"):
            model[1](Fails.apply(model[0](torch.ones(2, 3)))).sum().backward()
        exchange.zero()
        loss(model, rank).backward()
        exchange.finish()
        return gradients(model)

    for found in on_ranks(2, step, RingConfig(bucket_mb=1e-6)):
        torch.testing.assert_close(found, summed(2))


def test_ranks_that_start_apart_are_told_what_to_do():
    def program(transport, broadcast):
        model = copy.deepcopy(MODEL)
        with torch.no_grad():
            model[0].weight += transport.rank
        Exchange(World(transport), model, RingConfig(), **broadcast)
        return model[0].weight.detach().clone()

    with pytest.raises(PeerError, match=r"at the start are not the same .* \[1\] differ .* say broadcast=True"):
        run_ranks(2, lambda t: program(t, {"broadcast": False}))
    assert all(torch.equal(weight, MODEL[0].weight) for weight in run_ranks(2, lambda t: program(t, {})))


def test_the_mean_of_a_vote_is_its_signs():
    def step(model, exchange, rank):
        loss(model, rank).backward()
        exchange.finish()
        return gradients(model)

    for found in on_ranks(3, step, VoteConfig(), mean=True):
        assert all((gradient.abs() == 1).all() for gradient in found)


def test_a_vote_that_nobody_holds_is_refused():
    with pytest.raises(HpcoptError, match="decides no signs"):
        Exchange(alone(), MODEL, RingConfig()).signs()
