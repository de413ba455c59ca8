"""Horovod: ``mpirun -n 3 python examples/compare/with_horovod.py``."""

import csv
import sys
from pathlib import Path

import horovod.torch as hvd
import torch
from task import BATCH, EPOCHS, LR, correct, digits, network
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, DistributedSampler

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/digits-horovod")
hvd.init()
data, model = digits(train=True), network()
optimizer = torch.optim.SGD(model.parameters(), lr=LR)
sampler = DistributedSampler(data, hvd.size(), hvd.rank(), shuffle=True, drop_last=True)
loader = DataLoader(data, batch_size=BATCH // hvd.size(), sampler=sampler, drop_last=True)
first = 0
if (folder / "checkpoint.pt").exists():
    saved = torch.load(folder / "checkpoint.pt")
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    first = saved["epoch"]
hvd.broadcast_parameters(model.state_dict(), root_rank=0)
hvd.broadcast_optimizer_state(optimizer, root_rank=0)
optimizer = hvd.DistributedOptimizer(optimizer, model.named_parameters(), compression=hvd.Compression.fp16)
if hvd.rank() == 0:
    folder.mkdir(parents=True, exist_ok=True)
    log = csv.writer((folder / "losses.csv").open("a", buffering=1))
for epoch in range(first, EPOCHS):
    sampler.set_epoch(epoch)
    for step, (x, y) in enumerate(loader):
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        mean = hvd.allreduce(loss.detach())
        if hvd.rank() == 0:
            log.writerow([epoch, step, float(mean)])
    if hvd.rank() == 0:
        saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch + 1}
        torch.save(saved, folder / "checkpoint.tmp")
        (folder / "checkpoint.tmp").replace(folder / "checkpoint.pt")
if hvd.rank() == 0:
    print("accuracy", correct(model))
