"""Error feedback and EF21: what they guarantee, and the example that a biased codec does not survive without them."""

import pytest
import torch
from pydantic import TypeAdapter

from hpcopt.compress import EF21, Codec, Dense, ErrorFeedback, Feedback, FeedbackConfig, NoFeedback, RandomK, Sign, TopK
from hpcopt.errors import CheckpointError
from tests.compress.properties import gaussian

LAYOUT, CPU = {"x": (3,)}, torch.device("cpu")
SLOPES = torch.tensor([[-3.0, 2.0, 2.0], [2.0, -3.0, 2.0], [2.0, 2.0, -3.0]])


def descend(kind: type[Feedback], codec: Codec, rate: float, steps: int) -> float:
    """Distance from the optimum, 0, after gradient descent of three ranks with f_i(x) = <a_i, x>^2 + |x|^2 / 4 from
    (1, 1, 1).

    The example of arXiv:2002.12410, sec. 5.
    """
    ranks = [kind(codec) for _ in SLOPES]
    x = torch.ones(3)
    for step in range(steps):
        decoded = torch.zeros(3)
        for slope, feedback in zip(SLOPES, ranks, strict=True):
            gradient = 2 * (slope @ x) * slope + x / 2
            codec.decode_add(feedback.outgoing(gradient, LAYOUT, seed=step), decoded, 1 / 3)
        means = [feedback.incoming(decoded.clone(), LAYOUT) for feedback in ranks]
        assert all(torch.equal(mean, means[0]) for mean in means)
        x = x - rate * means[0]
    return float(x.norm())


def test_top_one_diverges_without_feedback_exactly_as_predicted():
    start, rate = 3**0.5, 0.02
    for steps in (10, 200):
        assert descend(NoFeedback, TopK(fraction=1 / 3), rate, steps) == pytest.approx(
            start * (1 + 11 * rate / 6) ** steps, rel=1e-3
        )
    assert descend(NoFeedback, TopK(fraction=1 / 3), rate, 400) > 1e6


@pytest.mark.parametrize("kind", [ErrorFeedback, EF21])
def test_top_one_converges_with_feedback(kind):
    assert descend(kind, TopK(fraction=1 / 3), 0.02, 400) < 1e-3
    assert descend(kind, TopK(fraction=1 / 3), 0.02, 1500) < 1e-5


@pytest.mark.parametrize("kind", [NoFeedback, ErrorFeedback, EF21])
def test_an_exact_codec_makes_it_plain_gradient_descent(kind):
    x = torch.ones(3)
    for _ in range(50):
        x = x - 0.02 * (2 * (SLOPES @ x) @ SLOPES / 3 + x / 2)
    assert descend(kind, Dense(), 0.02, 50) == pytest.approx(float(x.norm()), rel=1e-5)


def test_ef21_estimates_contract():
    """``|g - x|^2`` shrinks by at least (1 - k/n) for an x that stays (arXiv:2106.05203, lemma 3, with no movement)."""
    x, feedback = gaussian(100), EF21(TopK(fraction=0.1))
    error = float(x.square().sum())
    for step in range(30):
        feedback.outgoing(x, {"x": (100,)}, seed=step)
        after = float((feedback.state_dict()["own/x"] - x).square().sum())
        assert after <= 0.9 * error * (1 + 1e-6)
        error = after


@pytest.mark.parametrize("kind", [ErrorFeedback, EF21])
def test_state_goes_by_name_into_other_buckets(kind):
    """A run that is stopped, and goes on with its parameters in other buckets, sends what the unbroken run sends."""
    whole, halves = {"a": (4, 5), "b": (7,), "c": (3,)}, [{"c": (3,)}, {"a": (4, 5), "b": (7,)}]
    codec = Dense() if kind is EF21 else RandomK(fraction=0.5, scaled=False)
    feedback = kind(codec)
    for step in range(3):
        mean = codec.decode(feedback.outgoing(gaussian(30, seed=step), whole, seed=step), 30)
        feedback.incoming(mean, whole)
    state = {name: tensor.clone() for name, tensor in feedback.state_dict().items()}
    assert any(tensor.any() for tensor in state.values())

    resumed = kind(codec)
    resumed.load_state_dict(state)
    for layout in halves:
        resumed.outgoing(torch.zeros(sum(torch.Size(s).numel() for s in layout.values())), layout, seed=9)
    again = kind(codec)
    again.load_state_dict(state)
    unbroken, continued = gaussian(30, seed=7), gaussian(30, seed=7)
    assert torch.equal(feedback.outgoing(unbroken, whole, seed=7), again.outgoing(continued, whole, seed=7))
    assert set(again.state_dict()) == set(state) and {n: t.shape for n, t in resumed.state_dict().items()} == {
        n: t.shape for n, t in state.items()
    }


def test_regrouping_buckets_keeps_residuals():
    feedback = ErrorFeedback(Sign())
    feedback.outgoing(gaussian(30), {"a": (20,), "b": (10,)}, seed=0)
    held = {name: tensor.clone() for name, tensor in feedback.state_dict().items()}
    assert torch.equal(feedback.residuals.flat({"b": (10,), "c": (5,)}, CPU), torch.cat([held["b"], torch.zeros(5)]))
    assert torch.equal(feedback.residuals.flat({"a": (20,), "b": (10,)}, CPU), torch.cat([held["a"], held["b"]]))


def test_state_of_another_model_is_refused():
    feedback = ErrorFeedback(Sign())
    feedback.load_state_dict({"a": torch.zeros(21)})
    with pytest.raises(CheckpointError, match="'a'"):
        feedback.outgoing(gaussian(20), {"a": (20,)}, seed=0)
    with pytest.raises(CheckpointError, match="feedback"):
        NoFeedback(Sign()).load_state_dict({"a": torch.zeros(21)})


def test_a_job_names_the_feedback():
    built = TypeAdapter(FeedbackConfig).validate_python({"name": "ef21"}).build(Sign())
    assert isinstance(built, EF21) and built.codec == Sign()
