"""Reading sentence pairs as training does, beside reading the same files raw with h5py.

    python -m hpcopt.prepare bert
    python benchmarks/bert_reader.py [data/bert/128]

Ours ends in batches of tensors, shuffled, in the order of a run. Printed are tokens a second, the ratio to raw
reading by wall clock and by CPU time, and the resident memory before an epoch and at its highest.
"""

import argparse
import time
from pathlib import Path

import h5py
import torch

from hpcopt.models.bert import BertConfig
from hpcopt.shapes.context import Context
from hpcopt.workloads.bert_pretraining import BertPretraining, BertPretrainingConfig


def resident_bytes() -> int:
    return 4096 * int(Path("/proc/self/statm").read_text().split()[1])


def raw(folder: Path) -> int:
    rows = 0
    for path in sorted(folder.glob("*.hdf5")):
        with h5py.File(path, locking=False) as file:  # as ours, whose reader may still be at it
            rows += len({name: file[name][:] for name in file}["input_ids"])
    return rows


def ours(workload: BertPretraining) -> tuple[int, int]:
    """Rows of an epoch, and the most bytes resident meanwhile."""
    batches = workload.train_batches(0, 1, 0)
    rows = highest = 0
    for _ in range(workload.steps_per_epoch):
        rows += len(next(batches))
        highest = max(highest, resident_bytes())
    batches.close()
    return rows, highest


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("data", type=Path, nargs="?", default=Path("data/bert/128"))
    data = p.parse_args().data
    torch.set_num_threads(1)
    workload = BertPretrainingConfig(data=data, batch=64, model=BertConfig(size="tiny")).build(Context())
    tokens = next(workload.test_batches(0, 1)).tensors["input_ids"].shape[1]
    print("| raw, tokens/s | ours, tokens/s | ratio | ratio of CPU time | resident before, MB | at most, MB |")
    print("|---|---|---|---|---|---|")
    for _ in range(3):
        before = resident_bytes()
        wall, cpu = time.perf_counter(), time.process_time()
        rows = raw(data / "train")
        raw_speed, raw_cpu = rows * tokens / (time.perf_counter() - wall), rows / (time.process_time() - cpu)
        wall, cpu = time.perf_counter(), time.process_time()
        rows, highest = ours(workload)
        speed, own_cpu = rows * tokens / (time.perf_counter() - wall), rows / (time.process_time() - cpu)
        ratios = f"{speed / raw_speed:.2f} | {own_cpu / raw_cpu:.2f}"
        print(f"| {raw_speed:.3g} | {speed:.3g} | {ratios} | {before / 1e6:.0f} | {highest / 1e6:.0f} |")


if __name__ == "__main__":
    main()
