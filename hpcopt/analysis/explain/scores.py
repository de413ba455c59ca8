"""How good an explanation is, by one score of quantus for each of what is asked of one (arXiv:2202.06861)."""

import contextlib
import importlib
import io
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hpcopt.analysis.explain.methods import explain
from hpcopt.analysis.explain.question import Question
from hpcopt.errors import UnsupportedError
from hpcopt.randomness import drawn_by

SCORES = {
    "faithfulness": "correlation of what random values count with how the number falls without them; higher is better",
    "robustness": "largest relative change of the explanation under small noise; lower is better",
    "randomisation": "correlation with the explanation of a network of random weights; nearer to 0 is better",
    "complexity": "how few values it rests on, as a Gini index; higher is simpler",
}
RUNS = 32  # subsets of values of which the faithfulness is a correlation
NOISY = 4  # explanations of noisy inputs


def scores(method: str, question: Question, attribution: Tensor, seed: int) -> dict[str, float]:
    """The scores of one input's explanation, by the names of SCORES.

    Args:
        method: that gave it.
        question: about one input.
        attribution: the explanation, (1, ...).
        seed: of what is drawn.

    Raises:
        UnsupportedError: quantus is not installed.
    """
    try:
        quantus: Any = importlib.import_module("quantus")
    except ImportError as cause:
        raise UnsupportedError(
            f"scores need quantus ({cause}): `pip install quantus`, or the extra `explain`"
        ) from cause
    plain = _Plain(question)
    places = int(np.prod(plain.x.shape[2:]))
    if places < 2 or not bool((attribution != 0).any()):  # there is nothing to choose among, or nothing is said
        return dict.fromkeys(SCORES, float("nan"))
    tests: dict[str, Any] = {
        "faithfulness": quantus.FaithfulnessCorrelation(
            nr_runs=RUNS, subset_size=max(1, places // 8), perturb_func=plain.without, **_QUIET
        ),
        "robustness": quantus.MaxSensitivity(nr_samples=NOISY, lower_bound=0.05 * float(question.x.std()), **_QUIET),
        "randomisation": quantus.MPRT(skip_layers=True, return_last_correlation=True, abs=False, **_QUIET),
        "complexity": quantus.Sparseness(**_QUIET),
    }
    with drawn_by(seed), warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return {name: plain.score(test, method, attribution) for name, test in tests.items()}


_QUIET = {"return_aggregate": False, "disable_warnings": True, "display_progressbar": False}


class _Plain:
    """One question in the form that quantus knows: channels before places, and a model of one argument."""

    def __init__(self, question: Question) -> None:
        self._question = question
        self.model = _OneArgument(question).eval()
        self.x = self.there(question.x).numpy()
        names = {module: name for name, module in question.model.named_modules()}
        self._layer = None if question.layer is None else names[question.layer]

    def there(self, values: Tensor) -> Tensor:
        """Tokens and columns as one row of values, (1, 1, values): quantus knows no others."""
        return values if values.dim() == 4 else values.reshape(len(values), 1, -1)

    def without(self, arr: np.ndarray, indices: np.ndarray, **_: object) -> np.ndarray:
        """Inputs (n, values) with the question's baseline at some places, (n, k); quantus's own is the least value."""
        q, rows = self._question, np.arange(len(arr))[:, None]
        changed = arr.copy()
        changed[rows, indices] = q.baseline.expand_as(q.x).numpy().ravel()[indices]
        return changed

    def score(self, test: Any, method: str, attribution: Tensor) -> float:
        """What a test of quantus says."""
        mine = self.told(attribution)

        def explained(model: nn.Module, inputs: np.ndarray, targets: np.ndarray, **_: object) -> np.ndarray:
            return self._explain(method, model, inputs, targets)

        found: Any = float("nan")  # of a network of random weights that says nothing, by which quantus is disturbed
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(AssertionError):
            found = test(
                model=self.model,
                x_batch=self.x,
                y_batch=self._question.target.numpy(),
                a_batch=mine,
                channel_first=True,
                explain_func=explained,
                device="cpu",
                softmax=False,
                batch_size=1,
            )
        while isinstance(found, dict | list | np.ndarray):
            found = next(iter(found.values())) if isinstance(found, dict) else found[0]
        return float(found)

    def told(self, attribution: Tensor) -> np.ndarray:
        """An explanation in the shape of the inputs; quantus guesses wrongly what one of fewer channels is of."""
        return self.there(attribution.expand(len(attribution), *self._question.x.shape[1:])).numpy()

    def _explain(self, method: str, model: Any, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """What the method says of other inputs, or of a network that is a copy with other weights."""
        q = self._question
        x = torch.from_numpy(np.ascontiguousarray(inputs, np.float32)).reshape(-1, *q.x.shape[1:])
        found = [
            explain(
                method,
                model.model,
                x[row : row + 1],
                torch.from_numpy(np.asarray(targets, np.int64))[row : row + 1],
                self._layer,
                baseline=q.baseline,
                parts=q.parts,
                extra=q.extra,
                settings=q.settings,
            )
            for row in range(len(x))
        ]
        return self.told(torch.cat(found))


class _OneArgument(nn.Module):
    """A question's model as a function of its input alone."""

    def __init__(self, question: Question) -> None:
        super().__init__()
        self.model = question.model
        self._extra, self._shape = question.extra, question.x.shape[1:]

    def forward(self, x: Tensor) -> Tensor:
        """(m, classes) of inputs as quantus has them."""
        found: Tensor = self.model(
            x.float().reshape(-1, *self._shape), *(e.expand(len(x), *e.shape[1:]) for e in self._extra)
        )
        return found
