"""Any optimizer by its dotted name: what a job may say of it, and that it is the same as made by hand."""

import copy

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from hpcopt.errors import JobError
from hpcopt.job import read_job
from hpcopt.optim import AdamWConfig, AnyTorchConfig, SgdConfig
from hpcopt.optim.groups import set_learning_rate
from hpcopt.optim.several import Several

JOB = """
[run]
steps = 10
[workload]
data = "data/digits"
[solver.optimizer]
name = "torch"
"""


def parameters(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(*shape, generator=generator)) for shape in shapes]


def walk(optimizer, tensors, steps=4):
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        for p in tensors:
            p.grad = torch.randn(p.shape, generator=generator)
        set_learning_rate(optimizer, 0.1 / (1 + step))
        optimizer.step()
    return [p.detach().clone() for p in tensors]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            'type = "torch.optim:Muon"\narguments = { momentun = 0.9 }',
            'no argument "momentun"; did you mean "momentum"?',
        ),
        ('type = "torch.optim:Muon"\narguments = { qqq = 1 }', "it takes adjust_lr_fn, eps, momentum"),
        ('type = "torch.optim:Muon"\narguments = { lr = 0.1 }', "lr of torch.optim:Muon does not stand among its arg"),
        ('type = "torch.optim:Muon"\nmomentum = 0.9', 'unknown key "solver.optimizer.momentum"'),
        ('type = "torch.optim:AdamW"\narguments = { betas = [0.9, "x"] }', "optimizer.arguments: betas = [0.9, 'x']: "),
        (
            'type = "torch.optim:AdamW"\narguments = { eps = -1.0 }',
            "tried on a matrix, says ValueError: Invalid epsilon",
        ),
        ('type = "torch.optim:AdamW"\nlr = -1', "solver.optimizer.lr: Input should be greater than 0"),
        ('type = "torch.optim:LBFGS"', "torch.optim:LBFGS asks for the loss again in the midst of a step (a closure)"),
        ('type = "torch.optim:SparseAdam"', "SparseAdam does not support dense gradients"),
        ('type = "torch.optim:Mon"', 'solver.optimizer.type: "torch.optim:Mon": torch.optim has no Mon'),
        ('type = "Muon"', 'is not of the form "package.module:Class"'),
        ('type = "torch.nn:Linear"', "not a subclass of torch.optim.optimizer:Optimizer"),
        ('type = "own_optimizer:Needy"', "own_optimizer:Needy needs size, too"),
        ("", 'solver.optimizer.type" is missing'),
    ],
)
def test_what_is_wrong_is_said_when_the_job_is_read(text, complaint, tmp_path, monkeypatch):
    (tmp_path / "own_optimizer.py").write_text(
        "import torch\nclass Needy(torch.optim.SGD):\n    def __init__(self, params, size, lr=0.1): ...\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "job.toml").write_text(JOB + text)
    with pytest.raises(JobError) as error:
        read_job(tmp_path / "job.toml")
    assert complaint in str(error.value)
    assert len(str(error.value).splitlines()) == (1 if text else 2)  # without a type, there is no rate either


def test_a_job_is_a_job_again(tmp_path):
    (tmp_path / "job.toml").write_text(
        JOB + 'type = "torch.optim:Muon"\narguments = { ns_steps = 3 }\nothers = { name = "sgd", lr = 0.5 }'
    )
    job = read_job(tmp_path / "job.toml")
    assert job.solver.optimizer.lr == 1e-3  # Muon's own
    assert job.solver.optimizer.others == SgdConfig(lr=0.5)
    (tmp_path / "again.toml").write_text(job.as_toml())
    assert read_job(tmp_path / "again.toml") == job


def test_it_is_the_type_with_these_arguments():
    ours, by_hand = parameters((4, 3), (5,)), parameters((4, 3), (5,))
    config = AnyTorchConfig(type="torch.optim:NAdam", lr=0.1, arguments={"betas": [0.8, 0.9], "weight_decay": 0.1})
    groups = [{"params": by_hand[:1]}, {"params": by_hand[1:], "weight_decay": 0}]  # only matrices decay
    made = torch.optim.NAdam(groups, lr=0.1, betas=(0.8, 0.9), weight_decay=0.1)
    for x, y in zip(walk(config.build(ours), ours), walk(made, by_hand), strict=True):
        assert torch.equal(x, y)


def test_what_the_type_does_not_take_goes_to_others_at_their_own_rate():
    ours, by_hand = parameters((4, 3), (5,)), parameters((4, 3), (5,))
    config = AnyTorchConfig(type="torch.optim:Muon", lr=0.1, others=AdamWConfig(lr=0.02))
    optimizer = config.build(ours)
    assert [type(part).__name__ for part in optimizer.parts] == ["Muon", "AdamW"]
    matrix, vector = walk(optimizer, ours)
    assert torch.equal(matrix, walk(torch.optim.Muon(by_hand[:1], lr=0.1), by_hand[:1])[0])
    generators = [torch.Generator().manual_seed(step) for step in range(4)]
    adam = torch.optim.AdamW(by_hand[1:], weight_decay=0)
    for step, generator in enumerate(generators):
        torch.randn(4, 3, generator=generator)
        by_hand[1].grad = torch.randn(5, generator=generator)
        adam.param_groups[0]["lr"] = 0.2 * (0.1 / (1 + step))
        adam.step()
    torch.testing.assert_close(vector, by_hand[1].detach())


def test_without_others_it_says_what_it_does_not_take():
    config = AnyTorchConfig(type="torch.optim:Muon")
    with pytest.raises(JobError, match=r"Muon does not take parameters of shape \(5,\).*others = \{ name"):
        config.build(parameters((4, 3), (5,)))


def test_others_are_held_to_their_own_section():
    with pytest.raises(ValidationError, match="greater than 0"):
        AnyTorchConfig(type="torch.optim:Muon", others={"name": "adamw", "lr": -1})


def test_parts_share_groups_state_and_one_state_dict():
    tensors, copies = parameters((4, 3), (5,)), parameters((4, 3), (5,))
    config = AnyTorchConfig(type="torch.optim:Muon", lr=0.1, others=AdamWConfig(lr=0.02))
    optimizer, other = config.build(tensors), config.build(copies)
    walk(optimizer, tensors)
    assert isinstance(optimizer, Several)
    assert set(optimizer.state) == set(tensors)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    with torch.no_grad():
        for p, q in zip(copies, tensors, strict=True):
            p.copy_(q)
    for x, y in zip(walk(optimizer, tensors), walk(other, copies), strict=True):
        assert torch.equal(x, y)


def test_the_schema_takes_the_types_own_rate_for_granted():
    schema = AnyTorchConfig.model_json_schema()
    assert schema["required"] == ["type"]
    assert AnyTorchConfig.model_validate({"type": "torch.optim:Muon"}).lr == 1e-3
    with pytest.raises(ValueError, match="lr"):
        AnyTorchConfig.model_validate({"type": f"{__name__}:WithoutDefault"})


class WithoutDefault(torch.optim.SGD):
    """A type that wants to be told its rate."""

    def __init__(self, params, lr):
        super().__init__(params, lr=lr)
