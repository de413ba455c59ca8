"""The job's optimizers are torch's; only matrices decay."""

import torch
from torch import nn

from hpcopt.optim.first_order import AdamWConfig, SgdConfig


def test_decay_spares_vectors():
    model = nn.Linear(3, 2)
    for config in (SgdConfig(weight_decay=0.1), AdamWConfig(weight_decay=0.1)):
        decay = {
            tuple(p.shape): g["weight_decay"]
            for g in config.build(model.parameters()).param_groups
            for p in g["params"]
        }
        assert decay == {(2, 3): 0.1, (2,): 0.0}


def test_settings_reach_torch():
    p = [nn.Parameter(torch.ones(2, 2))]
    sgd = SgdConfig(lr=0.3, momentum=0.8, nesterov=True).build(p).defaults
    assert (sgd["lr"], sgd["momentum"], sgd["nesterov"]) == (0.3, 0.8, True)
    adamw = AdamWConfig(lr=0.3, betas=(0.8, 0.9), eps=1e-6).build(p).defaults
    assert (adamw["lr"], adamw["betas"], adamw["eps"]) == (0.3, (0.8, 0.9), 1e-6)
