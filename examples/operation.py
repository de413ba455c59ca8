"""Operate a trained classifier of images: python examples/operation.py RUN demands.csv --demands 500 --noise 0.1

Each demand is a test image with noise of its own, by classes as a profile weighs them, and becomes a line of the file,
which hpcopt assure RUN --demands demands.csv --watch reads as it grows. Images that nobody has looked at would be
better; a stand-in for operation is all that a data set can give.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

import hpcopt

if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("run", type=Path)
    p.add_argument("file", type=Path)
    p.add_argument("--demands", type=int, default=500)
    p.add_argument("--noise", type=float, default=0.1, help="standard deviation, of the images' own")
    p.add_argument("--only", help="operate on one class alone, which is drift")
    p.add_argument("--seed", type=int, default=0)
    options = p.parse_args()

    run = hpcopt.open_run(options.run)
    batches = list(run.workload.test_batches(0, 1))
    images = torch.cat([run.workload.pictures(batch) for batch in batches])
    labels = torch.cat([batch.tensors["labels"] for batch in batches])
    names = run.workload.attributes["classes"]
    among = np.flatnonzero([options.only in (None, names[label]) for label in labels])
    rng = np.random.default_rng(options.seed)
    torch.manual_seed(options.seed)

    heading = not options.file.exists()
    with options.file.open("a") as file, torch.no_grad():
        if heading:
            file.write("failure,class\n")
        for i in rng.choice(among, options.demands):
            image = images[i] + options.noise * torch.randn_like(images[i])
            guess = run.model(image[None]).argmax(1)
            file.write(f"{int(guess != labels[i])},{names[labels[i]]}\n")
