"""Error feedback: the example that a biased codec does not survive without it, and residuals that go by name."""

import pytest
import torch

from hpcopt.compress import Codec, Dense, RandomK, Residuals, Sign, TopK
from hpcopt.errors import CheckpointError, UnsupportedError
from hpcopt.testing.values import gaussian

CPU = torch.device("cpu")
SLOPES = torch.tensor([[-3.0, 2.0, 2.0], [2.0, -3.0, 2.0], [2.0, 2.0, -3.0]])


def descend(codec: Codec, feedback: bool, rate: float, steps: int) -> float:
    """Distance from the optimum, 0, after gradient descent of three ranks with f_i(x) = <a_i, x>^2 + |x|^2 / 4 from
    (1, 1, 1).

    The example of arXiv:2002.12410, sec. 5.
    """
    residuals = torch.zeros(3, 3)
    x = torch.ones(3)
    for step in range(steps):
        mean = torch.zeros(3)
        for slope, residual in zip(SLOPES, residuals, strict=True):
            gradient = 2 * (slope @ x) * slope + x / 2
            if feedback:
                payload = codec.encode_feedback(gradient, residual, seed=step)
            else:
                payload = codec.encode(gradient, seed=step)
            codec.decode_add(payload, mean, 1 / 3)
        x = x - rate * mean
    return float(x.norm())


def test_top_one_diverges_without_feedback_exactly_as_predicted():
    start, rate = 3**0.5, 0.02
    for steps in (10, 200):
        assert descend(TopK(fraction=1 / 3), False, rate, steps) == pytest.approx(
            start * (1 + 11 * rate / 6) ** steps, rel=1e-3
        )
    assert descend(TopK(fraction=1 / 3), False, rate, 400) > 1e6


def test_top_one_converges_with_feedback():
    assert descend(TopK(fraction=1 / 3), True, 0.02, 400) < 1e-3
    assert descend(TopK(fraction=1 / 3), True, 0.02, 1500) < 1e-5


@pytest.mark.parametrize("feedback", [False, True])
def test_an_exact_codec_makes_it_plain_gradient_descent(feedback):
    x = torch.ones(3)
    for _ in range(50):
        x = x - 0.02 * (2 * (SLOPES @ x) @ SLOPES / 3 + x / 2)
    assert descend(Dense(), feedback, 0.02, 50) == pytest.approx(float(x.norm()), rel=1e-5)


def test_residuals_go_by_name_into_other_buckets():
    """A run that is stopped, and goes on with its parameters in other buckets, owes what the unbroken run owes."""
    whole, halves = {"a": (4, 5), "b": (7,), "c": (3,)}, [{"c": (3,)}, {"a": (4, 5), "b": (7,)}]
    codec, residuals = RandomK(fraction=0.5, scaled=False), Residuals()
    for step in range(3):
        codec.encode_feedback(gaussian(30, seed=step), residuals.flat(whole, CPU), seed=step)
    state = {name: tensor.clone() for name, tensor in residuals.state_dict().items()}
    assert any(tensor.any() for tensor in state.values())

    resumed = Residuals()
    resumed.load_state_dict(state)
    cut = torch.cat([resumed.flat(layout, CPU) for layout in reversed(halves)])
    assert torch.equal(cut, residuals.flat(whole, CPU))
    assert torch.equal(resumed.flat(whole, CPU), cut)
    assert {n: t.shape for n, t in resumed.state_dict().items()} == {n: t.shape for n, t in state.items()}


def test_regrouping_buckets_keeps_residuals():
    residuals = Residuals()
    Sign().encode_feedback(gaussian(30), residuals.flat({"a": (20,), "b": (10,)}, CPU), seed=0)
    held = {name: tensor.clone() for name, tensor in residuals.state_dict().items()}
    assert torch.equal(residuals.flat({"b": (10,), "c": (5,)}, CPU), torch.cat([held["b"], torch.zeros(5)]))
    assert torch.equal(residuals.flat({"a": (20,), "b": (10,)}, CPU), torch.cat([held["a"], held["b"]]))


def test_state_of_another_model_is_refused():
    residuals = Residuals()
    residuals.load_state_dict({"a": torch.zeros(21)})
    with pytest.raises(CheckpointError, match="'a'"):
        residuals.flat({"a": (20,)}, CPU)


def test_a_residual_of_another_length_is_refused():
    for other in (19, 21):
        with pytest.raises(UnsupportedError, match=f"residual of {other} values"):
            Sign().encode_feedback(gaussian(20), torch.zeros(other), seed=0)
