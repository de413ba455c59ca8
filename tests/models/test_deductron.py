"""The handcrafted deductron is exact, gates have their truth table, and the two ways to go through time agree."""

import copy
from itertools import product

import numpy as np
import pytest
import torch
from torch.func import functional_call

from hpcopt.errors import JobError
from hpcopt.models.deductron import Deductron, DeductronConfig, HardDeductron, handcraft, scan
from hpcopt.models.frame_logic import FrameLogic
from hpcopt.shapes import Context, Discrete
from hpcopt.workloads.w_language import WLanguageConfig, batch_of, squared_error, wrong
from hpcopt.workloads.w_strings import draw_string, marked, stretched

STRINGS = ["".join(letters) for n in range(1, 9) for letters in product("XO", repeat=n)]


def drawings(most_repeats: int):
    draw = np.random.default_rng(0)
    for text in STRINGS:
        heights, targets = draw_string(text)
        yield stretched(heights, targets, draw.integers(1, most_repeats + 1, len(heights)))


def by_hand(network: Deductron, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Memories and outputs, a frame at a time, as the formulas say it."""
    n, length, _ = frames.shape
    units = network.readout.in_features
    z, memories, outputs = torch.zeros(n, units), [], []
    for t in range(length):
        memories.append(z)
        outputs.append(1 - network.gate(network.readout(z)))
        h = network.gate(network.gates(frames[:, t]))
        left, right = h[:, :units], h[:, units:]
        z = left * right * z + 1 - left
    return torch.stack(memories, 1), torch.stack(outputs, 1)


@pytest.mark.parametrize("repeats", [1, 5])
@torch.no_grad()
def test_the_handcrafted_reads_every_string_to_length_8(repeats):
    assert len(STRINGS) == 510
    batch = batch_of(list(drawings(repeats)), torch.arange(510), 510)
    frames, mask = batch.tensors["frames"], batch.tensors["mask"]
    hard = handcraft(HardDeductron(6, 2, 4))
    marks = hard(frames)
    assert not wrong(marks, batch).any()
    assert [marked(m.numpy()) for m in marks * mask] == STRINGS
    soft = handcraft(Deductron(6, 2, 4, slope=10))
    assert not wrong(soft(frames), batch).any()
    errors = squared_error(soft(frames), batch).sum((1, 2))
    assert float(errors.max()) < 0.05
    if repeats == 1:
        assert float(errors[STRINGS.index("XOOXXO")]) == pytest.approx(0.0019, abs=5e-5)
    memories, _ = by_hand(hard, frames)
    assert set(memories.unique().tolist()) == {0.0, 1.0}


def test_one_wrong_weight_is_an_error():
    batch = batch_of(list(drawings(1)), torch.arange(510), 510)
    network = handcraft(HardDeductron(6, 2, 4))
    with torch.no_grad():
        network.readout.weight[0, 0] = 1
    assert wrong(network(batch.tensors["frames"]), batch).any()


@pytest.mark.parametrize(("left", "right", "after"), [(0, 0, "1"), (0, 1, "1"), (1, 0, "0"), (1, 1, "as before")])
@pytest.mark.parametrize("before", [0, 1])
def test_a_unit_is_set_cleared_or_kept(left, right, after, before):
    expected = [0, before, before if after == "as before" else int(after)]  # z at the start, and after two frames
    lefts, rights = torch.tensor([1.0 - before, left, 1]), torch.tensor([0.0, right, 0])  # the first frame makes before
    z = scan((lefts * rights)[None, :, None], (1 - lefts)[None, :, None])
    assert [0, *z[0, :2, 0].tolist()] == expected
    logic = FrameLogic(torch.eye(3)[None])  # three unlike frames, in an order that np.unique turns round
    order = logic.distinct.argmax(1)
    assert logic.memory(lefts.numpy()[order] > 0, rights.numpy()[order] > 0)[0].tolist() == expected


@pytest.mark.parametrize("kind", [Deductron, HardDeductron])
@pytest.mark.parametrize("length", [1, 2, 7, 33])
def test_all_times_at_once_are_as_one_after_the_other(kind, length):
    torch.manual_seed(length)
    network, frames = kind(6, 2, 3), torch.randn(5, length, 6).round()
    memories, outputs = by_hand(network, frames)
    assert torch.allclose(network(frames), outputs, atol=1e-6)
    with torch.no_grad():
        assert torch.allclose(network(frames), outputs, atol=1e-6)
    assert float(memories.detach().min()) >= 0 and float(memories.detach().max()) <= 1


def test_gradients_are_those_of_differences():
    torch.manual_seed(0)
    network = Deductron(3, 2, 2).double()
    frames, names = torch.randn(2, 9, 3).double(), [name for name, _ in network.named_parameters()]

    def outputs(*values):
        return functional_call(network, dict(zip(names, values, strict=True)), frames)

    assert torch.autograd.gradcheck(outputs, [p.detach().requires_grad_() for p in network.parameters()])


def test_hard_gates_have_the_values_of_a_step_and_the_derivative_of_a_sigmoid():
    network, a = HardDeductron(6, 2, 1, slope=2.0), torch.tensor([0.4, 0.6], requires_grad=True)
    y = network.gate(a)
    y.sum().backward()
    s = torch.sigmoid(2 * (a.detach() - 0.5))
    assert y.tolist() == [0.0, 1.0]
    assert torch.allclose(a.grad, 2 * s * (1 - s))


def test_a_walk_s_energies_are_the_losses_of_a_network_that_does_not_walk():
    torch.manual_seed(0)
    walker, draw, still = HardDeductron(6, 2, 3), np.random.default_rng(0), HardDeductron(6, 2, 3)
    texts = list(drawings(2))
    one, other = (batch_of(some, torch.arange(len(some)), len(some)) for some in (texts[:40], texts[90:97]))
    strange = torch.randint(2, (3, 5, 6)).float()
    loss, seen = WLanguageConfig(test=1).build(Context()).loss, set()
    for number in range(150):
        walker.propose(draw)
        still.load_state_dict(walker.state_dict())
        for batch in (one, other) if number % 9 == 0 else (one,):
            with torch.no_grad():
                expected = float(loss(still, batch))
            assert walker.energy(loss, batch) == expected
            with torch.no_grad():
                assert torch.equal(walker(strange), still(strange))
            seen.add(expected)
        if number % 3 == 0:
            walker.undo()
        if number == 75:
            walker = copy.deepcopy(walker)
    assert len(seen) > 10


def test_moves_change_one_number_to_another_allowed_one_uniformly_and_back():
    network, draw = HardDeductron(2, 1, 1), np.random.default_rng(0)  # 4 + 2 + 1 + 1 numbers
    assert isinstance(network, Discrete) and not isinstance(Deductron(2, 1, 1), Discrete)
    counts, before = {}, torch.cat([p.detach().reshape(-1) for p in network.parameters()])
    for _ in range(2000):
        network.propose(draw)
        now = torch.cat([p.detach().reshape(-1) for p in network.parameters()])
        (place,) = (now != before).nonzero().ravel().tolist()
        counts[place, float(now[place])] = counts.get((place, float(now[place])), 0) + 1
        network.undo()
        again = torch.cat([p.detach().reshape(-1) for p in network.parameters()])
        assert torch.equal(again, before)
    weights = {k: n for k, n in counts.items() if k[0] in (0, 1, 2, 3, 6)}
    assert len(weights) == 5 * 2 and len(counts) == 5 * 2 + 3 * 3  # all values but the one that it has
    assert {value for (_, value) in weights} <= {-1.0, 0.0, 1.0}
    expected = {k: 2000 / 8 / (2 if k in weights else 3) for k in counts}
    chi2 = sum((n - expected[k]) ** 2 / expected[k] for k, n in counts.items())
    assert chi2 < 34.8  # 99% of 18 degrees of freedom


def test_what_cannot_be_handcrafted_is_refused():
    with pytest.raises(ValueError, match="has units = 4, not 3"):
        DeductronConfig(units=3, handcrafted=True)
    with pytest.raises(ValueError, match="has 6 inputs, 4 units and 2 outputs"):
        DeductronConfig(handcrafted=True).build(5, 2)


def test_a_job_begins_with_the_handcrafted():
    workload = WLanguageConfig(test=40, model=DeductronConfig(handcrafted=True, gates="hard")).build(Context())
    (batch,) = workload.test_batches(0, 1)
    assert float(workload.score(workload.model, batch)["test_wrong"]) == 0


def test_more_in_a_batch_than_there_are_is_refused():
    with pytest.raises(JobError, match=r"batch = 9, but train = 8"):
        WLanguageConfig(batch=9, train=8).build(Context())
