"""DDP with a hook: ``torchrun --nproc-per-node 3 examples/compare/ddp.py``."""

import csv
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from task import BATCH, EPOCHS, LR, correct, digits, network
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/digits-ddp")
dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
data = digits(train=True)
model = DistributedDataParallel(network())
model.register_comm_hook(None, fp16_compress_hook)
optimizer = torch.optim.SGD(model.parameters(), lr=LR)
sampler = DistributedSampler(data, shuffle=True, drop_last=True)
loader = DataLoader(data, batch_size=BATCH // size, sampler=sampler, drop_last=True)
first = 0
if (folder / "checkpoint.pt").exists():
    saved = torch.load(folder / "checkpoint.pt")
    model.module.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    first = saved["epoch"]
if rank == 0:
    folder.mkdir(parents=True, exist_ok=True)
    log = csv.writer((folder / "losses.csv").open("a", buffering=1))
for epoch in range(first, EPOCHS):
    sampler.set_epoch(epoch)
    for step, (x, y) in enumerate(loader):
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        if rank == 0:
            log.writerow([epoch, step, float(mean) / size])
    if rank == 0:
        saved = {"model": model.module.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch + 1}
        torch.save(saved, folder / "checkpoint.tmp")
        (folder / "checkpoint.tmp").replace(folder / "checkpoint.pt")
if rank == 0:
    print("accuracy", correct(model.module))
dist.destroy_process_group()
