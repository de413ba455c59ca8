"""Language models see nothing of what comes later; heads say probabilities, each as the published network does."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hpcopt.models.causal.head import AdaptiveHead, SoftmaxHead
from hpcopt.models.causal.lstm import LstmConfig
from hpcopt.models.causal.transformer import TransformerConfig

MODELS = {
    "lstm": LstmConfig(width=16, units=16, layers=2, head="tied"),
    "transformer": TransformerConfig(width=16, layers=2, heads=2, head="tied"),
}


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("training", [True, False])
def test_a_later_token_changes_nothing_before_it(name, training):
    torch.manual_seed(0)
    model = MODELS[name].build(20, 9).train(training)
    tokens = torch.randint(20, (3, 9))
    before = model(tokens)
    for place in range(9):
        other = tokens.clone()
        other[:, place] = (other[:, place] + 1) % 20
        after = model(other)
        torch.testing.assert_close(after[:, :place], before[:, :place])
        assert ((after[:, place:] - before[:, place:]).abs().amax(2) > 1e-6).all(), "and each one after it"


@torch.no_grad()
@pytest.mark.parametrize("head", ["tied", "untied", "adaptive"])
@pytest.mark.parametrize("name", MODELS)
def test_losses_are_of_probabilities(name, head):
    torch.manual_seed(0)
    config = MODELS[name].model_copy(update={"head": head, "cutoffs": (5, 11)})
    model = config.build(20, 6)
    tokens, targets = torch.randint(20, (2, 2, 6))
    logarithms = model(tokens)
    assert logarithms.shape == (2, 6, 20)
    torch.testing.assert_close(logarithms.exp().sum(2), torch.ones(2, 6))
    expected = -logarithms.gather(2, targets[:, :, None])[:, :, 0]
    torch.testing.assert_close(model(tokens, targets), expected)


def test_a_tied_head_has_the_table_of_the_embedding():
    words = nn.Embedding(7, 3)
    head, hidden, targets = SoftmaxHead(3, 7, tied=True), torch.randn(1, 2, 3), torch.tensor([[1, 6]])
    assert [name for name, _ in head.named_parameters()] == ["bias"]
    head(hidden, targets, words).sum().backward()
    scores = (hidden[0] @ words.weight.T).detach()
    expected = (scores.softmax(1) - F.one_hot(targets[0], 7)).T @ hidden[0]
    torch.testing.assert_close(words.weight.grad, expected)


def test_an_lstm_is_that_of_its_equations():
    torch.manual_seed(0)
    model = LstmConfig(width=3, units=4).build(9, 5)
    tokens = torch.randint(9, (1, 5))
    w, u, b, c = (p.detach() for p in model.lstm.parameters())
    h, state = torch.zeros(4), torch.zeros(4)
    for x in model.word(tokens)[0].detach():
        i, f, g, o = (w @ x + b + u @ h + c).chunk(4)
        state = f.sigmoid() * state + i.sigmoid() * g.tanh()
        h = o.sigmoid() * state.tanh()
    expected = (model.head.weight @ h + model.head.bias).log_softmax(0)
    torch.testing.assert_close(model(tokens)[0, -1], expected)


@pytest.mark.parametrize("cutoffs", [(), (0, 3), (3, 3), (5, 20)])
def test_cutoffs_ascend_within_the_vocabulary(cutoffs):
    with pytest.raises(ValueError, match="should ascend, each between 1 and 19"):
        AdaptiveHead(16, 20, cutoffs)


def test_every_cluster_has_units():
    with pytest.raises(ValueError, match="the last of 2 clusters"):
        AdaptiveHead(15, 20, (5, 9))
