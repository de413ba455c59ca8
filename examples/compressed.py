"""The classifier of classifier.py with fewer bytes, or with K-FAC: what changes is marked.

mpirun -n 3 python compressed.py --by ring      dense sums
mpirun -n 3 python compressed.py --by 4bit      sums of 4-bit numbers
mpirun -n 3 python compressed.py --by vote      majority votes of signs
mpirun -n 3 python compressed.py --by kfac      dense sums, and natural gradients
hpcopt report runs/ring runs/4bit runs/vote runs/kfac
"""

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import hpcopt
from hpcopt.compress import QSGD
from hpcopt.exchange import RingConfig, TwoPhaseConfig, VoteConfig

EXCHANGES = {
    "ring": RingConfig(),
    "4bit": TwoPhaseConfig(codec=QSGD(bits=4)),
    "vote": VoteConfig(),
    "kfac": RingConfig(),
}

parser = argparse.ArgumentParser()
parser.add_argument("--by", choices=EXCHANGES, default="4bit")
parser.add_argument("--steps", type=int, default=300)
parser.add_argument("--run-dir")
options = parser.parse_args()

images, classes = load_digits(return_X_y=True)
data = TensorDataset(torch.tensor(images / 16, dtype=torch.float32), torch.tensor(classes))

with hpcopt.Session(options.run_dir or f"runs/{options.by}", steps=options.steps) as session:
    model = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10)).to(session.device)
    lr = 0.001 if options.by == "vote" else 0.1  # a vote gives signs: each step moves each parameter by lr
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.0 if options.by == "vote" else 0.9)
    session.keep(model=model, optimizer=optimizer)
    exchange = session.exchange(model, EXCHANGES[options.by])  # changed: how gradients travel
    kaisa = None
    if options.by == "kfac":  # changed: and what becomes of them
        kaisa = hpcopt.Kaisa(model, session.world, lr=lr, damping=0.01)
        session.keep(kaisa=kaisa)

    loader = DataLoader(data, batch_sampler=session.sampler(data, batch=96))
    for x, y in session.steps(loader):
        exchange.zero()
        loss = F.cross_entropy(model(x.to(session.device)), y.to(session.device))
        loss.backward()
        exchange.finish()
        if kaisa is not None:
            with session.clock("precondition"):
                kaisa.step()
        optimizer.step()
        session.log(loss=loss)
