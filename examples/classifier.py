"""A classifier of handwritten digits, in a loop of one's own.

    python classifier.py
    mpirun -n 3 python classifier.py            the same curve
    hpcopt report runs/classifier

Stop it however you like, and start the same command again: it goes on where it was.
"""

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import hpcopt

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=300)
parser.add_argument("--run-dir", default="runs/classifier")
options = parser.parse_args()

images, classes = load_digits(return_X_y=True)
images, classes = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(classes)
train, test = TensorDataset(images[:1500], classes[:1500]), TensorDataset(images[1500:], classes[1500:])

with hpcopt.Session(options.run_dir, steps=options.steps) as session:
    device = session.device
    model = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    session.keep(model=model, optimizer=optimizer, schedule=schedule)  # in checkpoints; resumed, if there is one
    exchange = session.exchange(model)  # mean gradients over the ranks
    loader = DataLoader(train, batch_sampler=session.sampler(train, batch=96))  # 96 samples over all ranks

    for x, y in session.steps(loader):
        exchange.zero()
        loss = F.cross_entropy(model(x.to(device)), y.to(device))
        loss.backward()
        exchange.finish()
        optimizer.step()
        session.log(loss=loss, learning_rate=schedule.get_last_lr()[0])
        schedule.step()

        if session.every(50):
            with session.clock("evaluate"), torch.no_grad():
                mine = DataLoader(session.share(test), batch_size=100)
                correct = sum((model(x.to(device)).argmax(1).cpu() == y).sum() for x, y in mine)
            session.evaluation(higher={"test_accuracy": session.sum(correct)[0] / len(test)})
