"""Methods side by side over seeds: the difference of two means with its interval, and curves with their range."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from scipy import stats


def welch(values: Sequence[float], others: Sequence[float]) -> tuple[float, float, float]:
    """(difference of the means, its 95 % interval) of two samples with variances of their own."""
    result = stats.ttest_ind(values, others, equal_var=False)
    interval = result.confidence_interval(0.95)
    return statistics.mean(values) - statistics.mean(others), float(interval.low), float(interval.high)


def verdict(low: float, high: float) -> str:
    """In words, of the interval of a difference where less is better."""
    return "better" if high < 0 else "worse" if low > 0 else "within seed noise"


def draw(
    curves: Mapping[str, Sequence[Sequence[float]]], label: str, path: Path, *, is_logarithmic: bool = False
) -> None:
    """Running means over steps: by name one curve a seed; their mean is the line, their range the band."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for name, of_seeds in curves.items():
        smoothed = [smooth(curve) for curve in of_seeds]
        steps = range(1, len(smoothed[0]) + 1)
        (line,) = axes.plot(steps, [statistics.mean(at) for at in zip(*smoothed, strict=True)], label=name)
        lows, highs = zip(*((min(at), max(at)) for at in zip(*smoothed, strict=True)), strict=True)
        axes.fill_between(steps, lows, highs, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set(xlabel="step", ylabel=label)
    if is_logarithmic:
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)


def smooth(curve: Sequence[float], weight: float = 0.9) -> list[float]:
    """Running mean; the first values have less behind them."""
    smoothed, total, norm = [], 0.0, 0.0
    for value in curve:
        total, norm = weight * total + (1 - weight) * value, weight * norm + (1 - weight)
        smoothed.append(total / norm)
    return smoothed
