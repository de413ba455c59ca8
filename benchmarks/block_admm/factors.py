"""DeepFacto on 10,000 images of Fashion-MNIST: factors trained inside the network beside the same network with an NMF
added afterwards, both after 7 epochs; and with four coarse labels in place of ten, scored on the ten it never saw.

    python -m benchmarks.block_admm.factors --tune --methods deepfacto posthoc --seeds 0 1  settings, on held-out images
    python -m benchmarks.block_admm.factors --methods deepfacto posthoc --seeds 0 1 2       the best: run and record
    python -m benchmarks.block_admm.factors --methods picture --seeds 0                     what each factor looks at
    python -m benchmarks.block_admm.factors                                                 the table
"""

import dataclasses
from itertools import product
from pathlib import Path
from typing import Any

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
from hpcopt.optim import ScheduleConfig
from hpcopt.optim.first_order import AdamWConfig
from hpcopt.solvers.block_admm.deepfacto import DeepFactoConfig
from hpcopt.solvers.data_parallel import DataParallelConfig

SAMPLES, FACTORS, EPOCHS = 10000, 20, 7
COARSE = torch.tensor([0, 1, 0, 0, 0, 2, 0, 2, 3, 2])  # clothes for the upper body and dresses, trousers, shoes, bags
COSINE = ScheduleConfig(name="cosine")
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
    for plain, head, lr in product((3, 5), (10, 30), RATES)
}
AFTER: Settings = {
    f"{sweeps} sweeps, lr {lr:g}": {"optimizer": AdamWConfig(lr=lr, weight_decay=0), "sweeps": sweeps}
    for sweeps, lr in product((30, 60, 120, 240), RATES)
}
METHODS: dict[str, Settings] = {"deepfacto": JOINT, "posthoc": AFTER, "deepfacto-weak": JOINT, "posthoc-weak": AFTER}
LABELS = {
    "deepfacto": "DeepFacto",
    "posthoc": "NMF afterwards",
    "deepfacto-weak": "DeepFacto, four coarse labels",
    "posthoc-weak": "NMF afterwards, four coarse labels",
}
PICTURE = Path("docs/factors.png")


def network(seed: int, classes: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return FactorMlpConfig(hidden=(256, 128), factors=FACTORS, code_steps=200).build((784,), classes)


def deepfacto(data: tuple[Images, Images], classes: int, seed: int, setting: dict[str, Any]) -> nn.Sequential:
    """Plain training, then everything together."""
    model = network(seed, classes)
    config = DeepFactoConfig(schedule=COSINE).model_copy(update=setting)
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
    """Train the classifier alone to its end, on label-free codes: a logistic regression on codes of unit deviation with
    a small L2 penalty is convex, so that its end does not depend on how it is reached.
    """
    codes, classifier = model[:-1](data.x), model[-1]
    scale = codes.std(0).clamp_min(1e-6)
    for p in classifier.parameters():
        nn.init.zeros_(p)
    optimizer = torch.optim.LBFGS(classifier.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        loss = F.cross_entropy(classifier(codes / scale), data.y) + 1e-4 * classifier.weight.square().sum()
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

    def make(method: str, setting: dict[str, Any], seed: int) -> tuple[nn.Sequential, tuple[Images, Images]]:
        weak = method.endswith("-weak")
        train, test = (dataclasses.replace(part, y=COARSE[part.y]) if weak else part for part in data)
        build = posthoc if method.startswith("posthoc") else deepfacto
        return build((train, test), 4 if weak else 10, seed, setting), (train, test)

    def run(method: str, setting: dict[str, Any], seed: int) -> dict[str, Any]:
        model, used = make(method, setting, seed)
        return scores(model, used[1], data[1].y)

    if choice.methods == ["picture"]:
        torch.set_num_threads(1)
        settings = METHODS["deepfacto"]
        picture(make("deepfacto", settings[chosen("factors", "deepfacto", settings)], choice.seeds[0])[0], data[1])
    else:
        run_all("factors", METHODS, choice, run)


def table() -> None:
    results = recorded("factors")
    columns = ("accuracy", "reconstruction_error", "auc_mean", "auc_min", "sparsity")
    print("| method | setting (of so many) | seeds | accuracy | reconstruction error | AUC, mean | least | zeros |")
    print("|---|---|---|---|---|---|---|---|")
    for method, settings in METHODS.items():
        if method in results:
            label = chosen("factors", method, settings)
            runs = [run for run in results[method] if run["setting"] == label]
            accuracy, error, auc, worst_auc, zeros = ([run[column] for run in runs] for column in columns)
            print(
                f"| {LABELS[method]} | {label} ({len(settings)}) | {len(runs)} | {spread(accuracy)} | {spread(error)} "
                f"| {spread(auc, 3)} | {min(worst_auc):.3f} | {spread(zeros, 2)} |"
            )


if __name__ == "__main__":
    main()
