"""Residual networks in few bits: Fashion-MNIST of half the side, by the quantizer of gradients and its bits.

    hpcopt study benchmarks/quantized_resnet.toml
    hpcopt study report studies/quantized_resnet
    python -m benchmarks.quantized_resnet    bytes of a step's activations and gradients, by quantizer

The first 10,000 training pictures, batches of 64, SGD with momentum, accuracy on all test pictures. In all ways but
``float32`` products are of 8 bits forward; ``exact`` rounds no gradient, and is the reference. CPU seconds are those of
a training step on one core. All integers are held as float32: bytes are what they would take, not what they took.
"""

import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.lgc import Pictures, accuracy
from hpcopt.compress import BHQ, PSQ, Codec
from hpcopt.lowbit import QuantizedConfig
from hpcopt.lowbit.layers import QuantizedLayer
from hpcopt.models.resnet import ResNetConfig
from hpcopt.optim import CosineConfig

PICTURES, BATCH, WIDTH, RATE = 10_000, 64, 8, 0.1


def network(blocks: int, way: str) -> nn.Module:
    """ResNet-8 or a deeper one; ``way`` is "float32", "exact", or a quantizer and its bits."""
    model: nn.Module = ResNetConfig(blocks=blocks, width=WIDTH).build((1, 14, 14), 10)
    kind, _, bits = way.partition(" ")
    if kind == "float32":
        return model
    return QuantizedConfig(gradient=kind, bits=int(bits or 8)).apply(model)  # type: ignore[arg-type]


def trained(point: dict[str, Any]) -> dict[str, float]:
    """A run: accuracy, the training loss of the last epoch, CPU milliseconds of a step."""
    torch.manual_seed(point["seed"])
    training, test = (Pictures.of(point["data"], split) for split in ("train", "test"))
    x, y = training.x[:PICTURES], training.y[:PICTURES]
    model = network(point["blocks"], point["way"])
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, weight_decay=5e-4)
    order, schedule = torch.Generator().manual_seed(point["seed"]), CosineConfig(warmup=0.05)
    each = PICTURES // BATCH
    steps, losses = point["epochs"] * each, []
    start_s = time.process_time()
    for step in range(steps):
        if step % each == 0:
            places = torch.randperm(PICTURES, generator=order)
        optimizer.param_groups[0]["lr"] = RATE * schedule.factor(step, steps)
        mine = places[step % each * BATCH :][:BATCH]
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x[mine]), y[mine])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    step_ms = 1e3 * (time.process_time() - start_s) / steps
    return {"accuracy": accuracy(model.eval(), test), "loss": sum(losses[-each:]) / each, "step_ms": step_ms}


def step_bytes(blocks: int, way: str) -> tuple[int, int]:
    """Of all layers' inputs, and of the gradients of their outputs on their way on, in a batch."""
    model, kept, sent = network(blocks, way), 0, 0
    kind, _, bits = way.partition(" ")
    codecs: dict[str, Codec] = {"psq": PSQ(bits=int(bits or 8)), "bhq": BHQ(bits=int(bits or 8), height=BATCH)}

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal kept, sent
        if not isinstance(layer, QuantizedLayer):
            kept, sent = kept + inputs[0].nbytes, sent + output.nbytes
            return
        kept += PSQ(bits=8).for_tensor("", tuple(inputs[0].shape)).max_bytes(inputs[0].numel())
        if kind == "exact":
            sent += output.nbytes
        elif kind == "ptq":
            sent += PSQ(bits=int(bits), columns=output.numel()).max_bytes(output.numel())
        else:
            sent += codecs[kind].for_tensor("", tuple(output.shape)).max_bytes(output.numel())

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    model(torch.zeros(BATCH, 1, 14, 14))
    return kept, sent


def main() -> None:
    """Print the table of bytes."""
    print("| blocks | gradients | activations, MB | gradients, MB |\n|---|---|---|---|")
    for blocks in (1, 2):
        for way in ("float32", "exact", *(f"{kind} {bits}" for bits in (8, 5, 4, 2) for kind in ("ptq", "psq", "bhq"))):
            kept, sent = step_bytes(blocks, way)
            print(f"| {blocks} | {way} | {kept / 1e6:.3f} | {sent / 1e6:.3f} |")


if __name__ == "__main__":
    main()
