"""The same preconditioned gradients on any number of ranks and with any fraction; memory as planned; checkpoints that
load elsewhere.
"""

import copy
import re

import pytest
import torch
from torch import Tensor

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World, alone
from hpcopt.errors import CheckpointError, JobError, PeerError
from hpcopt.solvers.kaisa.factors import Work
from hpcopt.solvers.kaisa.preconditioner import Kaisa
from tests.solvers.kaisa.test_layers import mean_loss
from tests.solvers.kaisa.test_preconditioner import Net, net_and_words

SAMPLES = 12  # in every global batch
SETTINGS = {"damping": 0.2, "kl_clip": 1e-3, "factor_every": 1, "inverse_every": 2}
GRIDS = [(1, 1.0), (2, 0.5), (2, 1.0), (3, 0.34), (3, 0.5), (3, 1.0), (4, 0.25), (4, 0.5), (4, 1.0)]
GRIDS += [(6, 1 / 6), (6, 1 / 3), (6, 0.5), (6, 1.0)]


def train(world: World, dtype: torch.dtype, steps: int = 3, state=None, **settings) -> tuple[Net, Kaisa]:
    """Steps of plain gradient descent with preconditioned gradients; the model, and the preconditioner."""
    net, _ = copy.deepcopy(NETS[dtype])
    kaisa = Kaisa(net, world, lr=0.1, **{**SETTINGS, **settings})
    if state is not None:
        parameters, shared, parts = state
        net.load_state_dict(parameters)
        kaisa.load_state_dict(shared, parts)
    for step in range(kaisa.steps, kaisa.steps + steps):
        x = torch.randint(0, 7, (SAMPLES, 4), generator=torch.Generator().manual_seed(step))
        net.zero_grad()
        mean_loss(net(x[world.rank :: world.size])).backward()
        for p in net.parameters():
            world.all_reduce(p.grad)
            p.grad /= world.size
        kaisa.step()
        with torch.no_grad():
            for p in net.parameters():
                p -= 0.1 * p.grad
    return net, kaisa


NETS = {dtype: net_and_words(dtype=dtype) for dtype in (torch.float32, torch.float64)}


def assert_same(found, expected, tolerance):
    """The last step's preconditioned gradients."""
    found, expected = (torch.cat([p.grad.flatten() for p in net.parameters()]) for net in (found, expected))
    assert (found - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("size, fraction", GRIDS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_any_grid_moves_the_same(size, fraction, dtype, tolerance):
    steps = 3 if dtype == torch.float64 else 1
    expected, _ = train(alone(), dtype, steps)
    found = run_ranks(size, lambda t: train(World(t), dtype, steps, fraction=fraction)[0])
    for net in found:
        assert_same(net, expected, tolerance)
        assert_same(net, found[0], 0)


@pytest.mark.parallel([2, 3, 4])
def test_mpi_moves_the_same():
    from hpcopt.comm.world import connect

    world = connect()
    expected, _ = train(alone(), torch.float64)
    for fraction in (1 / 3, 0.5, 1.0):
        found, _ = train(world, torch.float64, fraction=fraction)
        assert_same(found, expected, 1e-9)


WAYS = [
    {},
    {"method": "low_rank", "rank": 3},
    {"method": "eigen"},
    {"inverse_lag": 2},
    {"refresh_tolerance": 0.3},
    {"factor_dtype": "bfloat16"},
    {"method": "muon"},
    {"methods": {"conv": "shampoo", "Linear": "muon"}, "inverse_lag": 2},
]


@pytest.mark.parametrize("settings", WAYS, ids=str)
def test_a_checkpoint_continues_on_other_ranks(settings):
    """Also in the middle of background work, and with layers whose inverses are kept."""
    tolerance = 1e-2 if "factor_dtype" in settings else 1e-9  # sums in another order round to other bits
    straight, _ = train(alone(), torch.float64, 6, **settings)

    def first_half(t):
        net, kaisa = train(World(t), torch.float64, 3, **settings, fraction=0.5)
        return (
            copy.deepcopy(net.state_dict()),
            copy.deepcopy(kaisa.state_dict()),
            copy.deepcopy(kaisa.rank_state_dict()),
        )

    halves = run_ranks(4, first_half)
    parts = [part for _, _, part in halves]
    state = (halves[0][0], halves[0][1], parts)
    for size, fraction in ((1, 1.0), (3, 1 / 3), (6, 0.5)):
        found = run_ranks(
            size, lambda t, f=fraction: train(World(t), torch.float64, 3, state, **settings, fraction=f)[0]
        )
        assert_same(found[-1], straight, tolerance)
    lacking = [part for part in parts if part][:-1]
    with pytest.raises(CheckpointError, match="no factors of"):
        train(alone(), torch.float64, 1, (halves[0][0], halves[0][1], lacking), **settings)


@pytest.mark.parametrize("size, fraction", [(1, 1.0), (3, 0.5), (4, 0.25), (4, 1.0)])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"factor_dtype": "bfloat16", "inverse_dtype": "bfloat16"},
        {"method": "muon"},
        {"method": "soap"},
        {"method": "shampoo", "factor_dtype": "bfloat16"},
    ],
    ids=str,
)
def test_memory_is_as_predicted(size, fraction, settings):
    def program(t):
        _, kaisa = train(World(t), torch.float32, 2, fraction=fraction, **settings)
        return kaisa.memory.held_bytes, held_bytes(kaisa)

    for predicted, measured in run_ranks(size, program):
        assert measured == pytest.approx(predicted, rel=0.05)


def held_bytes(kaisa: Kaisa) -> int:
    """Bytes of all storages that the preconditioner leads to, without the model's own."""
    model = {p.untyped_storage().data_ptr() for p in kaisa._model.parameters()}
    model |= {p.grad.untyped_storage().data_ptr() for p in kaisa._model.parameters()}
    seen, storages, queue = set(), {}, [kaisa]
    while queue:
        thing = queue.pop()
        if id(thing) in seen or isinstance(thing, (str, bytes, int, float, World, torch.nn.Module)):
            continue
        seen.add(id(thing))
        if isinstance(thing, Tensor):
            storages[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
        elif isinstance(thing, dict):
            queue += [*thing.keys(), *thing.values()]
        elif isinstance(thing, (list, tuple, set)):
            queue += list(thing)
        elif hasattr(thing, "__dict__"):
            queue += list(vars(thing).values())
    return sum(n for pointer, n in storages.items() if pointer not in model)


def test_factors_travel_in_bfloat16_at_half_the_bytes():
    def program(t, **settings):
        world = World(t)
        net, kaisa = train(world, torch.float32, 1, fraction=1 / 3, **settings)
        return net, world.traffic.sent_bytes, sum(kaisa.plan.sums.lengths) - kaisa.plan.sums.lengths[world.rank]

    exact = run_ranks(3, program)
    rounded = run_ranks(3, lambda t: program(t, wire_dtype="bfloat16"))
    for (net, sent, values), (other, less, _) in zip(exact, rounded, strict=True):
        assert_same(other, net, 0.02)
        assert sent - less == 2 * values


@pytest.mark.parametrize("method", ["cholesky", "muon", "soap"])
@pytest.mark.parametrize("size, columns", [(3, 1), (4, 2), (4, 4)])
def test_bytes_are_as_forecast(size, columns, method):
    def program(t):
        world = World(t)
        settings = {"factor_every": 2, "inverse_every": 4, "wire_dtype": "bfloat16", "method": method}
        net, kaisa = train(world, torch.float32, 0, fraction=1 / columns, **settings)
        before = world.traffic.sent_bytes
        for _ in range(4):
            mean_loss(net(torch.ones(2, 4, dtype=torch.int64))).backward()
            kaisa.step()
        (forecast,) = [f for f in kaisa.forecasts() if f.fraction == kaisa.plan.placement.grid.fraction]
        return (world.traffic.sent_bytes - before) / 4, forecast, kaisa.memory.held_bytes

    sent, forecasts, held = zip(*run_ranks(size, program), strict=True)
    assert forecasts[0].sent_bytes == max(sent)
    assert forecasts[0].held_bytes == max(held)


def equal_layers() -> torch.nn.Module:
    return copy.deepcopy(EQUAL)


EQUAL = torch.nn.Sequential(*(torch.nn.Linear(20, 20) for _ in range(8)))


def test_memory_falls_with_the_fraction():
    held = [
        max(run_ranks(4, lambda t, f=fraction: Kaisa(equal_layers(), World(t), fraction=f).memory.held_bytes))
        for fraction in (1.0, 0.5, 0.25)
    ]
    assert held[0] > held[1] > held[2]


def test_a_budget_picks_the_fraction():
    held = {
        columns: max(
            run_ranks(4, lambda t, c=columns: Kaisa(equal_layers(), World(t), fraction=1 / c).memory.held_bytes)
        )
        for columns in (1, 2, 4)
    }
    for columns, n in held.items():
        (grid, *_) = run_ranks(4, lambda t, b=n: Kaisa(equal_layers(), World(t), memory_budget=b).plan.placement.grid)
        assert grid.columns == columns
    with pytest.raises(JobError, match=re.escape("1/4")):
        run_ranks(4, lambda t: Kaisa(equal_layers(), World(t), memory_budget="1kB"))


def test_ekfac_continues_on_other_ranks_in_the_basis_it_had():
    settings = {"method": "ekfac", "inverse_every": 10}

    def first_half(t):
        net, kaisa = train(World(t), torch.float64, 2, **settings)
        return copy.deepcopy((net.state_dict(), kaisa.state_dict(), kaisa.rank_state_dict()))

    halves = run_ranks(2, first_half)
    state = (*halves[0][:2], [part for _, _, part in halves])
    expected = run_ranks(2, lambda t: train(World(t), torch.float64, 4, **settings)[0])[0]
    for size in (1, 3):
        found = run_ranks(size, lambda t: train(World(t), torch.float64, 2, state, **settings)[0])
        assert_same(found[-1], expected, 1e-9)
    with pytest.raises(JobError, match="fraction"):
        run_ranks(2, lambda t: Kaisa(equal_layers(), World(t), method="ekfac", fraction=0.5))


def test_background_inverses_are_those_of_the_step_that_began_them():
    """Started at step 2, in use from step 3: the same as inverting step 2's factors then."""
    _, kaisa = train(alone(), torch.float64, 3, inverse_lag=1)
    stale = copy.deepcopy(kaisa._averages.of)
    before = kaisa._inverses.flat.clone()
    _, continued = train(alone(), torch.float64, 4, inverse_lag=1)
    assert not torch.equal(continued._inverses.flat, before)
    for i, average in stale.items():
        expected = torch.zeros_like(continued._inverses.of(i))
        work = Work(kaisa._found[i], average.a, average.g, 0.2, expected)
        continued._method.invert([work], kaisa.failures)
        torch.testing.assert_close(continued._inverses.of(i), expected)


def test_layers_that_hardly_changed_keep_their_inverses():
    _, always = train(alone(), torch.float64, 5)
    _, never = train(alone(), torch.float64, 5, refresh_tolerance=100.0)
    assert always.skipped_refreshes == 0
    assert never.skipped_refreshes == 2 * len(never._found)  # steps 2 and 4


@pytest.mark.parametrize("fraction", [0.5, 1.0])
def test_a_rank_without_samples_takes_part(fraction):
    """With an empty batch, or without a forward pass at all."""
    net, x = net_and_words()

    def step(world: World, own: Tensor | None) -> Net:
        model = copy.deepcopy(net)
        kaisa = Kaisa(model, world, averaged=False, fraction=fraction, **SETTINGS)
        if own is not None:
            (mean_loss(model(own)) if len(own) else model(own).sum() * 0).backward()
        for p in model.parameters():
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            world.all_reduce(p.grad)
        kaisa.step(terms=len(x))
        return model

    expected = step(alone(), x)
    for empty in (x[:0], None):
        for found in run_ranks(2, lambda t, e=empty: step(World(t), e if t.rank else x)):
            assert_same(found, expected, 1e-9)


def test_ranks_that_start_apart_are_told_what_to_do_or_start_alike():
    nets = [torch.nn.Linear(3, 2) for _ in range(2)]
    with pytest.raises(PeerError, match=r"ranks \[1\] differ from rank 0: say broadcast=True"):
        run_ranks(2, lambda t: Kaisa(nets[t.rank], World(t), broadcast=False))
    run_ranks(2, lambda t: Kaisa(nets[t.rank], World(t)))
    assert torch.equal(nets[0].weight, nets[1].weight)
