"""Lightning Fabric: ``fabric run --accelerator cpu --strategy ddp --devices 3 examples/compare/with_fabric.py``."""

import sys
from pathlib import Path

import torch
from lightning.fabric import Fabric
from lightning.fabric.loggers import CSVLogger
from lightning.fabric.strategies import DDPStrategy
from task import BATCH, EPOCHS, LR, correct, digits, network
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, DistributedSampler

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/digits-fabric")
strategy = DDPStrategy(process_group_backend="gloo")
fabric = Fabric(accelerator="cpu", strategy=strategy, devices=3, loggers=CSVLogger(folder))
fabric.launch()
data, model = digits(train=True), network()
model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=LR))
model._forward_module.register_comm_hook(None, fp16_compress_hook)
sampler = DistributedSampler(data, fabric.world_size, fabric.global_rank, shuffle=True, drop_last=True)
loader = DataLoader(data, batch_size=BATCH // fabric.world_size, sampler=sampler, drop_last=True)
loader = fabric.setup_dataloaders(loader, use_distributed_sampler=False)
state = {"model": model, "optimizer": optimizer, "epoch": 0}
if (folder / "checkpoint").exists():
    fabric.load(folder / "checkpoint", state)
for epoch in range(state["epoch"], EPOCHS):
    sampler.set_epoch(epoch)
    for step, (x, y) in enumerate(loader):
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        fabric.backward(loss)
        optimizer.step()
        fabric.log("loss", fabric.all_reduce(loss.detach()), step=epoch * len(loader) + step)
    state["epoch"] = epoch + 1
    fabric.save(folder / "checkpoint", state)
fabric.print("accuracy", correct(model))
