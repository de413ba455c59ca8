"""hpcopt: ``mpirun -n 3 python examples/compare/ours.py``; ``hpcopt report runs/digits`` reads what it leaves."""

import sys

import torch
from task import BATCH, EPOCHS, LR, correct, digits, network
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from hpcopt import Session
from hpcopt.compress import Half
from hpcopt.exchange import RingConfig

data, model = digits(train=True), network()
optimizer = torch.optim.SGD(model.parameters(), lr=LR)
with Session(sys.argv[1] if len(sys.argv) > 1 else "runs/digits", steps=EPOCHS * (len(data) // BATCH)) as session:
    session.keep(model=model, optimizer=optimizer)
    exchange = session.exchange(model, RingConfig(codec=Half()))
    for x, y in session.steps(DataLoader(data, batch_sampler=session.sampler(data, BATCH))):
        exchange.zero()
        loss = cross_entropy(model(x), y)
        loss.backward()
        exchange.finish()
        optimizer.step()
        session.log(loss=loss)
    session.evaluation(higher={"accuracy": correct(model)})
