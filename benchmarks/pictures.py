"""What networks know of pictures of sizes that they were not trained on: the table of a study, as Markdown.

    hpcopt study jobs/study_pictures.toml
    python benchmarks/pictures.py [studies/study_pictures]

Starts of a kind are taken by threes, and the one of a group is chosen that is best on the sizes for validation; among
graph weighted models the dimension is chosen so, too.
"""

import sys
from pathlib import Path

import numpy as np

from hpcopt.study import read_study

STARTS = 3  # in a group
KINDS = {
    "graph weighted": lambda model: model["name"] == "graph_weighted",
    "perceptron, padded": lambda model: model["name"] == "padded_mlp" and len(model["hidden"]) > 0,
    "linear, padded": lambda model: model["name"] == "padded_mlp" and not len(model["hidden"]),
}
SHOWN = ("familiar_accuracy", "validation_accuracy", "test_accuracy_4x4", "test_accuracy_5x5")


def main(folder: Path) -> None:
    """Print a line for each group, and how all starts of a kind did."""
    table = read_study(folder)
    scores = np.stack([table.results[name] for name in SHOWN], 1)
    points, done = table.points, table.status == "done"
    print("| task | network | seeds | chosen | trained sizes | validation | 4 by 4 | 5 by 5 |\n|" + "---|" * 8)
    for task in dict.fromkeys(point["workload.task"] for point in points):
        for kind, fits in KINDS.items():
            mine = [
                number
                for number, point in enumerate(points)
                if done[number] and point["workload.task"] == task and fits(point["workload.model"])
            ]
            for first in range(0, 1 + max((points[number]["seed"] for number in mine), default=-1), STARTS):
                group = [number for number in mine if first <= points[number]["seed"] < first + STARTS]
                best = max(group, key=lambda number: scores[number, 1])
                model = points[best]["workload.model"]
                chosen = f"seed {points[best]['seed']}" + (f", d = {d}" if (d := model.get("dimension")) else "")
                seen = sorted({points[number]["seed"] for number in group})
                cells = " | ".join(f"{value:.3f}" for value in scores[best])
                print(f"| {task} | {kind} | {', '.join(map(str, seen))} | {chosen} | {cells} |")
            spread = " | ".join(f"{low:.3f} to {high:.3f}" for low, high in zip(*_ends(scores[mine]), strict=True))
            print(f"| {task} | {kind} | all {len(mine)} | none | {spread} |")


def _ends(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return scores.min(0), scores.max(0)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "studies/study_pictures"))
