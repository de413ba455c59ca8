"""Memory of BERT-Large on one rank, predicted and measured.

    python benchmarks/bert_large.py layer [--inverse-dtype bfloat16]
    python benchmarks/bert_large.py step [--vocabulary 30522]

``layer`` gives K-FAC one layer of the encoder, takes a step with factors and inverses, and compares the plan with the
tensors that are alive afterwards and with the most memory that was resident. ``step`` builds the network and takes one
SGD step in bfloat16 at batch 1.
"""

import argparse
import gc
import time
from pathlib import Path

import torch

import hpcopt
from hpcopt.comm.world import alone
from hpcopt.models.bert import BertConfig, BertLayer

MB = 1e6
SEQUENCE = 128


def resident_bytes() -> int:
    return 4096 * int(Path("/proc/self/statm").read_text().split()[1])


def tensor_bytes() -> int:
    """Of the storages of all tensors that are alive."""
    storages = [x.untyped_storage() for x in gc.get_objects() if issubclass(type(x), torch.Tensor)]
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values())


def peak_bytes() -> int:
    """Most bytes resident since ``forget_peak``."""
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def layer(inverse_dtype: str) -> None:
    block = BertLayer(hidden=1024, heads=16, dropout=0.0)
    x, mask = torch.randn(2, SEQUENCE, 1024), torch.ones(2, 1, 1, SEQUENCE, dtype=torch.bool)
    for _ in range(2):  # gradients, and what torch's kernels keep for themselves, are there before
        block(x, mask).square().mean().backward()
    gradients = [p.grad for p in block.parameters()]  # so that they are counted before
    torch.linalg.cholesky(torch.eye(64))
    before, tensors = resident_bytes(), tensor_bytes()
    kaisa = hpcopt.Kaisa(block, alone(), max_size=4097, inverse_dtype=inverse_dtype)
    block(x, mask).square().mean().backward()
    forget_peak()
    kaisa.step()
    held, peak = tensor_bytes() - tensors, peak_bytes() - before
    plan = kaisa.memory
    assert all(p.grad is g for p, g in zip(block.parameters(), gradients, strict=True))
    print("| inverses in | | predicted, MB | measured, MB | ratio |\n|---|---|---|---|---|")
    for what, predicted, measured in (
        ("kept, in tensors", plan.held_bytes, held),
        ("at most, resident", plan.held_bytes + plan.passing_bytes, peak),
    ):
        print(f"| {inverse_dtype} | {what} | {predicted / MB:.1f} | {measured / MB:.1f} | {measured / predicted:.2f} |")


def step(words: int) -> None:
    start = time.perf_counter()
    torch.manual_seed(0)
    model = BertConfig(size="large").build(words)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    ids, segments = torch.randint(5, words, (1, SEQUENCE)), torch.zeros(1, SEQUENCE, dtype=torch.int64)
    masked, labels = torch.arange(1, 21), torch.randint(5, words, (20,))
    with torch.autocast("cpu", torch.bfloat16):
        found, follows = model(ids, segments, ids >= 0, masked)
    loss = torch.nn.functional.cross_entropy(found.float(), labels)
    loss = loss + torch.nn.functional.cross_entropy(follows.float(), torch.zeros(1, dtype=torch.int64))
    loss.backward()
    first = model.word.weight[0].clone()
    optimizer.step()
    assert torch.isfinite(loss) and not torch.equal(first, model.word.weight[0])
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters:,} parameters, loss {loss.item():.3f}, {time.perf_counter() - start:.1f} s, ", end="")
    print(f"{peak_bytes() / 2**30:.2f} GiB resident at most")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=["layer", "step"])
    p.add_argument("--inverse-dtype", default="float32", choices=["float32", "bfloat16"])
    p.add_argument("--vocabulary", type=int, default=30522, help="words")
    options = p.parse_args()
    torch.set_num_threads(1)
    if options.what == "layer":
        layer(options.inverse_dtype)
    else:
        step(options.vocabulary)


if __name__ == "__main__":
    main()
