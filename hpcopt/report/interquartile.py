"""Interquartile means over runs, with bootstrap intervals: how few runs of few seeds are put together (Agarwal et al.
2021, arXiv:2108.13264).

The scores are a table of runs and tasks, each task with as many runs. Their interquartile mean is the mean of what is
left when a quarter of all scores, rounded down, is dropped at either end. An interval comes of tables whose runs are
drawn with replacement, those of each task for themselves (stratified).
"""

import numpy as np

CONFIDENCE = 0.95
REPETITIONS = 2000


def interquartile_mean(scores: np.ndarray) -> np.ndarray:
    """Of tables of scores, (..., runs, tasks), the interquartile mean of each, (...); NaN where one is NaN."""
    flat = np.sort(scores.reshape(*scores.shape[:-2], -1), axis=-1)
    cut = flat.shape[-1] // 4
    mean: np.ndarray = flat[..., cut : flat.shape[-1] - cut].mean(-1)
    return np.where(np.isnan(flat[..., -1]), np.nan, mean)  # NaN is sorted to the end


def bootstrap_interval(
    scores: np.ndarray, confidence: float = CONFIDENCE, repetitions: int = REPETITIONS, seed: int = 0
) -> tuple[float, float]:
    """The percentile interval of the interquartile mean of scores, (runs, tasks): its low and its high end."""
    runs, tasks = scores.shape
    drawn = np.random.default_rng(seed).integers(runs, size=(repetitions, runs, tasks))
    means = interquartile_mean(np.take_along_axis(scores[None], drawn, axis=1))
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
