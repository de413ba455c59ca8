"""Codes are learnt by the gradient of their softmax, the same on any number of ranks; guides draw them."""

import copy
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hpcopt.checkpoint import main as checkpoint
from hpcopt.errors import JobError
from hpcopt.exchange import RingConfig, TwoPhaseConfig, VoteConfig
from hpcopt.models.bert import BertConfig
from hpcopt.models.causal.lstm import LstmConfig
from hpcopt.models.causal.transformer import TransformerConfig
from hpcopt.models.code_table import CodeTable
from hpcopt.models.coded_embedding import CodedEmbedding, CodedEmbeddingConfig, codes_of, straight_through
from hpcopt.models.compact import compact
from hpcopt.models.rewrite import with_penalties
from hpcopt.optim import AdamWConfig, SignumConfig
from hpcopt.shapes.context import Context
from hpcopt.solvers.data_parallel import DataParallelConfig
from hpcopt.store.tree import read_tree
from hpcopt.testing.problem import Problem
from hpcopt.testing.solver import Trial, check_bytes, check_equal_on_all_ranks, check_resume, check_same_curve
from hpcopt.testing.workload import check_workload
from hpcopt.train import main
from hpcopt.workloads.language_model import LanguageModelConfig
from tests.models.signs import rewritten
from tests.text_data import write_text

CODES = CodedEmbeddingConfig(ways=3, digits=4)


def coded(words=23, width=6, **settings) -> CodedEmbedding:
    torch.manual_seed(3)
    return CodedEmbedding(nn.Embedding(words, width), CODES.model_copy(update=settings))


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_the_gradient_is_that_of_the_softmax(temperature):
    logits = torch.randn(5, 4, 3, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(5, 4, 3, dtype=torch.float64)
    hard = straight_through(logits, temperature)
    assert torch.equal(hard, F.one_hot(logits.argmax(-1), 3).double()), "forward is exact"
    (found,) = torch.autograd.grad(hard, logits, upstream)
    p = (logits.detach() / temperature).softmax(-1)
    torch.testing.assert_close(found, p * (upstream - (p * upstream).sum(-1, keepdim=True)) / temperature)


def test_a_cold_softmax_is_its_largest_value():
    logits = torch.randn(5, 4, 3, requires_grad=True)
    assert torch.allclose((logits / 1e-4).softmax(-1), straight_through(logits, 1e-4), atol=1e-6)
    (found,) = torch.autograd.grad(straight_through(logits, 1e-4).sum(), logits)
    assert found.abs().max() < 1e-6


def test_the_normalisation_takes_its_own_gradient_away():
    """With statistics that are no constants, gradients differ by what shifts or scales a value's logits alone."""
    layer, upstream = coded(), torch.randn(23, 4, 3)
    logits = layer.logits.detach().requires_grad_()
    variance, mean = torch.var_mean(logits, 0, correction=0)
    normal = (logits - mean) / (variance + 1e-5).sqrt()
    (full,) = torch.autograd.grad(straight_through(normal), logits, upstream)
    (ours,) = torch.autograd.grad(
        straight_through((logits - mean.detach()) / (variance.detach() + 1e-5).sqrt()), logits, upstream
    )
    columns = normal.detach().flatten(1)
    for column, difference in zip(columns.T, (full - ours).flatten(1).T, strict=True):
        invariant = torch.stack([torch.ones(23), column], 1)
        left = difference - invariant @ torch.linalg.lstsq(invariant, difference[:, None]).solution[:, 0]
        assert left.norm() < 1e-4 * difference.norm() + 1e-7
    assert torch.equal(codes_of(3 * logits + torch.randn(4, 3)), codes_of(logits))


def test_words_share_codes_where_there_are_fewer():
    layer = coded(digits=2, ways=2)
    assert len(layer.codes().unique(dim=0)) <= 4 and len(layer.eval().weight.unique(dim=0)) <= 4


def test_gumbel_draws_a_value_as_often_as_the_softmax_says():
    layer = coded(words=3, digits=1, relaxation="gumbel")
    with torch.no_grad():
        logits = layer.logits[:, 0]
        normal = (logits - logits.mean(0)) / (logits.var(0, correction=0) + 1e-5).sqrt()
        layer.composer.tables.copy_(torch.eye(3, 6)[None])
        found = layer(torch.ones(20_000, dtype=torch.int64)).mean(0)[:3]
    torch.testing.assert_close(found, normal[1].softmax(0), atol=0.02, rtol=0)


def test_the_temperature_falls_with_the_step_to_its_floor():
    layer, seen = coded(temperature=2.0, cooling=0.5, coldest=0.3), []
    for layer.step in range(4):
        layer(torch.arange(3))
        layer(torch.arange(0)), "another pass, of a share without samples, changes nothing"
        seen.append(layer._temperature())
    assert seen == pytest.approx([2, 1, 0.5, 0.3])
    coldest = coded(temperature=0.1, coldest=0.3)
    assert coldest._temperature() == 0.1, "without cooling there is no floor"


def test_embeddings_are_drawn_to_the_table_that_they_replace():
    table = nn.Embedding(23, 6)
    layer = CodedEmbedding(table, CODES.model_copy(update={"guide": "table", "guide_weight": 10.0}))
    tokens = torch.tensor([[1, 2], [2, 7]])
    loss = with_penalties(lambda model, batch: model(batch).sum())
    found = layer(tokens)
    expected = found.sum() + 10 * ((found - table(tokens)) ** 2).mean()
    torch.testing.assert_close(loss(layer, tokens), expected)
    assert layer.penalty is None and "guide" not in layer.state_dict()
    layer.eval()
    torch.testing.assert_close(loss(layer, tokens), layer(tokens).sum())


def test_a_guide_beside_is_trained_and_left_behind():
    layer = coded(guide="online", guide_weight=2.0)
    tokens = torch.arange(23).repeat(40)
    found = layer(tokens)
    from_guide = (found == layer.guide[tokens]).all(1)
    assert 0.4 < from_guide.float().mean() < 0.6
    (found.sum() + layer.penalty).backward()
    seen = torch.bincount(tokens[from_guide], minlength=23).float()
    torch.testing.assert_close(layer.guide.grad, seen[:, None].expand(23, 6)), "the penalty does not move the guide"
    assert layer.logits.grad.abs().sum() > 0
    assert "guide" in layer.state_dict() and "guide" not in compact(layer).state_dict()


@pytest.mark.parametrize(
    ("model", "tokens"),
    [
        (LstmConfig(width=6, units=6, head="tied").build(23, 9), (torch.randint(23, (2, 9)),)),
        (
            BertConfig(size="tiny").build(23),
            (torch.randint(23, (2, 9)), torch.zeros(2, 9, dtype=torch.int32), torch.ones(2, 9) > 0, torch.arange(5)),
        ),
    ],
    ids=["lstm", "bert"],
)
def test_the_word_table_is_replaced_by_one_key(model, tokens):
    """In the head that is tied to it, too."""
    std = float(model.word.weight.detach().std())
    CODES.apply(model.eval())
    assert isinstance(model.word, CodedEmbedding)
    assert float(model.word.weight.detach().std()) == pytest.approx(std, rel=0.3)
    assert "word.weight" not in model.state_dict()
    small = compact(copy.deepcopy(model))
    assert isinstance(small.word, CodeTable)
    with torch.no_grad():
        assert torch.equal(small.word.weight, model.word.weight)
        torch.testing.assert_close(small(*tokens), model(*tokens))
    found = model.train()(*tokens)
    (found[0] if isinstance(found, tuple) else found).square().sum().backward()
    assert model.word.logits.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        (nn.Linear(2, 2), 'no embedding "word" in the network, only none'),
        (nn.ModuleDict({"word": nn.Embedding(4, 2, padding_idx=0)}), "padding_idx, max_norm or sparse"),
        (nn.ModuleDict({"other": nn.Embedding(4, 2)}), "only other"),
    ],
)
def test_what_codes_cannot_replace_is_said(table, complaint):
    with pytest.raises(ValueError, match=complaint):
        CODES.apply(table)


PROBLEM = Problem(model=partial(rewritten, CODES))


def test_the_curve_is_that_of_one_rank():
    check_same_curve(Trial(DataParallelConfig(optimizer=AdamWConfig(lr=0.01)), PROBLEM), (1, 2, 3))


@pytest.mark.parametrize(
    ("config", "exchange"),
    [
        (DataParallelConfig(optimizer=AdamWConfig(lr=0.01)), RingConfig()),
        (DataParallelConfig(optimizer=AdamWConfig(lr=0.01)), TwoPhaseConfig()),
        (DataParallelConfig(optimizer=SignumConfig(lr=0.01)), VoteConfig()),
    ],
    ids=["ring", "qsgd", "votes"],
)
def test_codes_are_learnt_through_any_exchange_and_resumed(config, exchange):
    trial = Trial(config, PROBLEM, exchange)
    check_equal_on_all_ranks(trial, 3)
    check_bytes(trial, 3)
    check_resume(trial, 3)
    run = trial.first(3)[0]
    before = rewritten(CODES)
    assert run.losses[-1] < run.losses[0] * 1.05
    assert not torch.equal(run.shared["model"]["word.logits"], before.state_dict()["word.logits"])


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "words")


def test_a_workload_with_codes_keeps_the_promises(data):
    model = TransformerConfig(width=8, layers=1, heads=2, head="tied")
    check_workload(LanguageModelConfig(data=data, batch=11, length=7, model=model, rewrites=(CODES,)), ranks=(1, 3))


def test_a_rewrite_that_does_not_suit_is_one_message(data):
    config = LanguageModelConfig(data=data, batch=4, length=4, rewrites=(CODES.model_copy(update={"table": "wrd"}),))
    with pytest.raises(JobError, match=r'coded_embedding: no embedding "wrd" in the network, only word'):
        config.made(Context())


JOB = """
[run]
name = "codes"
steps = {steps}
[workload]
name = "language_model"
data = "{data}"
batch = 6
length = 6
model = {{ name = "lstm", width = 8, units = 8 }}
[[workload.rewrites]]
name = "coded_embedding"
ways = 5
digits = 4
guide = "online"
relaxation = "gumbel"
cooling = 0.9
[solver]
name = "data_parallel"
optimizer = {{ name = "adamw" }}
"""


def test_a_job_goes_on_bit_for_bit_and_its_export_is_small(data, tmp_path):
    for name, steps in (("straight", (6,)), ("stopped", (3, 6))):
        for count in steps:
            (tmp_path / "job.toml").write_text(JOB.format(data=data, steps=count))
            assert main([str(tmp_path / "job.toml"), "--run-dir", str(tmp_path / name)]) == 0
    assert checkpoint(["diff", *(str(tmp_path / name) for name in ("straight", "stopped"))]) == 0
    assert checkpoint(["export", str(tmp_path / "stopped"), str(tmp_path / "small.h5"), "--codes"]) == 0
    found = read_tree(tmp_path / "small.h5")
    words = found["word.size"].tolist()[0]
    assert found["word.packed"].numel() == -(-words * 4 * 3 // 8)
    assert not {"word.logits", "word.guide"} & found.keys()
    assert CodeTable.of_state(found, "word").weight.shape == (words, 8)


def test_a_trainer_tells_layers_the_step(data, tmp_path, monkeypatch):
    """Whatever the number of passes, and after a restart: micro-batches make two of each step."""
    seen = []
    monkeypatch.setattr(CodedEmbedding, "_temperature", lambda layer: seen.append(layer.step) or 1.0)
    for count in (3, 5):
        (tmp_path / "job.toml").write_text(JOB.format(data=data, steps=count) + "accumulate = 2\n")
        assert main([str(tmp_path / "job.toml"), "--run-dir", str(tmp_path / "run")]) == 0
    assert seen == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_an_export_without_codes_says_so(data, tmp_path, capsys):
    job = JOB.format(data=data, steps=1).partition("[[")[0] + '[solver]\nname = "data_parallel"\n'
    (tmp_path / "job.toml").write_text(job)
    assert main([str(tmp_path / "job.toml"), "--run-dir", str(tmp_path / "run")]) == 0
    assert checkpoint(["export", str(tmp_path / "run"), str(tmp_path / "m.h5"), "--codes"]) == 2
    assert "no embedding of the network has codes" in capsys.readouterr().err
