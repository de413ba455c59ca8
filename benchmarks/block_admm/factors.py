"""DeepFacto on 10,000 images of Fashion-MNIST: factors trained inside the network beside the same network with an NMF
added afterwards, both after 7 epochs. With all labels; with the labels of a tenth or a hundredth of the images; and
with four coarse labels in place of ten, scored on the ten it never saw. These have the settings best with all labels.

    python -m benchmarks.block_admm.factors --tune --methods deepfacto posthoc --seeds 0    settings, on held-out images
    python -m benchmarks.block_admm.factors --tune --best 4 --methods deepfacto posthoc --seeds 1 2   the best of those
    python -m benchmarks.block_admm.factors --methods deepfacto posthoc deepfacto-few       the best: run and record
    python -m benchmarks.block_admm.factors --methods picture --seeds 0                     what each factor looks at
    python -m benchmarks.block_admm.factors                                                 the table
"""

import dataclasses
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.block_admm.bench import (
    Images,
    Settings,
    chosen,
    fashion_mnist,
    options,
    recorded,
    run_all,
    spread,
    train,
)
from hpcopt.models.disentangling import best_factor_auc, reconstruction_error, sparsity
from hpcopt.models.nmf import FactorMlpConfig, Nmf, factorize
from hpcopt.optim import CosineConfig
from hpcopt.optim.first_order import AdamWConfig
from hpcopt.solvers.block_admm.deepfacto import DeepFactoConfig
from hpcopt.solvers.data_parallel import DataParallelConfig
from hpcopt.workloads.image_classification import UNLABELLED, unlabelled

SAMPLES, FACTORS, EPOCHS = 10000, 20, 7
COARSE = torch.tensor([0, 1, 0, 0, 0, 2, 0, 2, 3, 2])  # clothes for the upper body and dresses, trousers, shoes, bags
COSINE = CosineConfig()
RATES = (1e-3, 2e-3)
JOINT: Settings = {
    f"{plain} plain epochs, head {head}, lr {lr:g}": {
        "optimizer": AdamWConfig(lr=lr, weight_decay=0),
        "plain": plain / EPOCHS,
        "head": head,
        "label": 100,
        "code_steps": 40,
        "classifier_rate": 10,
    }
    for plain, head, lr in {
        **dict.fromkeys(product((3, 5), (10, 30), (1e-3, 2e-3))),
        **dict.fromkeys(product((2, 3), (30, 100), (2e-3, 4e-3))),
        (3, 300, 2e-3): None,
    }
}
AFTER: Settings = {
    f"{sweeps} sweeps, lr {lr:g}": {"optimizer": AdamWConfig(lr=lr, weight_decay=0), "sweeps": sweeps}
    for sweeps, lr in product((30, 60, 120, 240), (1e-3, 2e-3, 3e-3, 4e-3))
}
BASES: dict[str, Settings] = {"deepfacto": JOINT, "posthoc": AFTER}
LABELLED = {"": 1.0, "-tenth": 0.1, "-hundredth": 0.01, "-coarse": 1.0}  # part of the labels that is seen
METHODS = {base + kind: settings for kind in LABELLED for base, settings in BASES.items()}
LABELS = {"deepfacto": "DeepFacto", "posthoc": "NMF afterwards"}
KINDS = {"": "all labels", "-tenth": "1,000 labels", "-hundredth": "100 labels", "-coarse": "four coarse labels"}
PICTURE = Path("docs/pictures/factors.png")


def network(seed: int, classes: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return FactorMlpConfig(hidden=(256, 128), factors=FACTORS, code_steps=200).build((784,), classes)


def deepfacto(data: tuple[Images, Images], classes: int, seed: int, setting: dict[str, Any]) -> nn.Sequential:
    """Plain training, then everything together. The head's weight is for the labelled images' mean loss."""
    model = network(seed, classes)
    labelled = float((data[0].y != UNLABELLED).double().mean())
    config = DeepFactoConfig(schedule=COSINE).model_copy(update=setting | {"head": setting["head"] / labelled})
    train(config, model, *data, batch=128, epochs=EPOCHS, seed=seed)
    fit_classifier(model, data[0])
    return model


def posthoc(data: tuple[Images, Images], classes: int, seed: int, setting: dict[str, Any]) -> nn.Sequential:
    """As many epochs of plain training; then an NMF of all training features."""
    model = network(seed, classes)
    nmf = next(layer for layer in model if isinstance(layer, Nmf))
    plain = nn.Sequential(*list(model[:-2]), nn.Linear(nmf.basis.shape[1], classes))
    train(
        DataParallelConfig(optimizer=setting["optimizer"], schedule=COSINE),
        plain,
        *data,
        batch=128,
        epochs=EPOCHS,
        seed=seed,
    )
    with torch.no_grad():
        _, basis = factorize(plain[:-1](data[0].x), FACTORS, setting["sweeps"], torch.Generator().manual_seed(0))
        nmf.basis.copy_(basis)
    fit_classifier(model, data[0])
    return model


def fit_classifier(model: nn.Sequential, data: Images) -> None:
    """Train the classifier alone to its end, on label-free codes of the images that have a label: a logistic regression
    on codes of unit deviation with a small L2 penalty is convex, so that its end does not depend on how it is reached.
    """
    known = data.y != UNLABELLED
    codes, labels, classifier = model[:-1](data.x[known]), data.y[known], model[-1]
    scale = codes.std(0).clamp_min(1e-6)
    for p in classifier.parameters():
        nn.init.zeros_(p)
    optimizer = torch.optim.LBFGS(classifier.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        loss = F.cross_entropy(classifier(codes / scale), labels) + 1e-4 * classifier.weight.square().sum()
        parameters = list(classifier.parameters())
        for p, slope in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            p.grad = slope
        return loss

    optimizer.step(objective)
    with torch.no_grad():
        classifier.weight /= scale


@torch.no_grad()
def scores(model: nn.Sequential, test: Images, fine: Tensor) -> dict[str, Any]:
    """Accuracy on the labels it was trained on; scores of its codes against the fine ones, which may be others."""
    features = model[:-2](test.x)
    codes = model[-2](features)
    aucs = best_factor_auc(codes, fine)
    return {
        "accuracy": test.accuracy(model),
        "reconstruction_error": reconstruction_error(features, codes, model[-2].basis),
        "auc_mean": float(aucs.mean()),
        "auc_min": float(aucs.min()),
        "sparsity": sparsity(codes),
        "smallest": min(float(codes.min()), float(model[-2].basis.min())),
    }


def picture(model: nn.Sequential, test: Images) -> None:
    """A row a factor: the pixels it is sensitive to (red raises it, blue lowers it), its mean image, and the five
    images that it is largest on.
    """
    from PIL import Image

    features, basis = model[:-2], model[-2].basis
    with torch.no_grad():
        codes = model[-2](features(test.x))
    rows = []
    for k in codes.sum(0).argsort(descending=True).tolist():
        top = codes[:, k].argsort(descending=True)
        x = test.x[top[:64]].clone().requires_grad_()
        (slope,) = torch.autograd.grad((features(x) @ basis[k]).sum(), x)
        mean = (codes[:, k, None] * test.x).sum(0) / codes[:, k].sum().clamp_min(1e-12)
        panels = [red_blue(slope.mean(0)), *(gray(panel) for panel in (mean, *test.x[top[:5]]))]
        rows.append(torch.cat(panels, 1))
    half = -(-len(rows) // 2)
    rows += [torch.full_like(rows[0], 255)] * (2 * half - len(rows))
    columns = [torch.cat(rows[:half]), torch.full((half * 28, 14, 3), 255), torch.cat(rows[half:])]
    pixels = torch.cat(columns, 1).to(torch.uint8).numpy()
    mosaic = Image.fromarray(pixels)
    mosaic.resize((2 * mosaic.width, 2 * mosaic.height), Image.Resampling.NEAREST).save(PICTURE)
    print(f"wrote {PICTURE}")


def gray(image: Tensor) -> Tensor:
    """Pixels (784,) as (28, 28, 3) from black to white."""
    scaled = 255 * (image - image.min()) / (image.max() - image.min()).clamp_min(1e-12)
    return scaled.view(28, 28, 1).expand(28, 28, 3)


def red_blue(image: Tensor) -> Tensor:
    """Values (784,) as (28, 28, 3): red above zero, blue below, white at it."""
    part = (image / image.abs().max().clamp_min(1e-12)).view(28, 28)
    return 255 * torch.stack([1 + part.clamp(max=0), 1 - part.abs(), 1 - part.clamp(min=0)], 2)


def main() -> None:
    choice = options(__doc__ or "", [*METHODS, "picture"])
    if not choice.methods:
        table()
        return
    data = fashion_mnist(SAMPLES, tune=choice.tune)

    def make(method: str, setting: dict[str, Any], seed: int) -> tuple[nn.Sequential, Images]:
        """The trained model, and the test images with labels of the kind that it was trained on."""
        base, _, kind = method.partition("-")
        train, test = data
        if kind == "coarse":
            train, test = (dataclasses.replace(part, y=COARSE[part.y]) for part in data)
        hidden = torch.from_numpy(unlabelled(len(train.y), LABELLED[method.removeprefix(base)], seed))
        train = dataclasses.replace(train, y=train.y.masked_fill(hidden, UNLABELLED))
        build = posthoc if base == "posthoc" else deepfacto
        return build((train, test), 4 if kind == "coarse" else 10, seed, setting), test

    def run(method: str, setting: dict[str, Any], seed: int) -> dict[str, Any]:
        return scores(*make(method, setting, seed), data[1].y)

    if choice.methods == ["picture"]:
        torch.set_num_threads(1)
        picture(make("deepfacto", JOINT[best("deepfacto")], choice.seeds[0])[0], data[1])
        return
    methods = {method: METHODS[method] for method in choice.methods}
    if not choice.tune:  # all kinds of labels have the setting that is best with all labels
        for method in choice.methods:
            base = method.partition("-")[0]
            methods[method] = {best(base): BASES[base][best(base)]}
    run_all("factors", methods, choice, run)


def table() -> None:
    results = recorded("factors")
    columns = {"accuracy": 4, "reconstruction_error": 4, "auc_mean": 3, "auc_min": 3, "sparsity": 2}  # digits
    print(
        "| labels | method | seeds | accuracy | points over NMF afterwards | error | AUC, mean | AUC, least | zeros |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for kind, base in product(KINDS, BASES):
        runs, others = (
            {run["seed"]: run for run in results.get(name + kind, []) if run["setting"] == best(name)}
            for name in (base, "posthoc")
        )
        if runs:
            accuracy, *rest = (spread([run[name] for run in runs.values()], digits) for name, digits in columns.items())
            over = "" if base == "posthoc" else paired_difference(runs, others)
            print("|", " | ".join([KINDS[kind], LABELS[base], str(len(runs)), accuracy, over, *rest]), "|")
    for base, settings in BASES.items():
        print(f"\n{LABELS[base]}: {best(base)}, of {len(settings)} settings.")


def best(base: str) -> str:
    """The setting of a method, for all kinds of labels."""
    return chosen("factors", base, BASES[base])


def paired_difference(runs: dict[int, dict[str, Any]], others: dict[int, dict[str, Any]]) -> str:
    """Points of accuracy above the others with the same seeds: mean and its standard error."""
    differences = 100 * np.array([runs[seed]["accuracy"] - others[seed]["accuracy"] for seed in runs if seed in others])
    return f"{differences.mean():+.2f} ± {differences.std(ddof=1) / len(differences) ** 0.5:.2f}"


if __name__ == "__main__":
    main()
