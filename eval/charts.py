"""The charts of one benchmark: pass@k and votes over k, how often questions are solved, lengths, accuracy by part."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median

import matplotlib
import numpy as np
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator, PercentFormatter

from eval.intervals import Estimate, over_questions
from eval.metrics import group, powers_of_two
from eval.questions import Answer
from rlhf.training.progress import cut, printable
from rlhf.training.report.charts import MUTED, SERIES, STYLE, Drawing, add_legend, canvas, scale_y, to_svg

RIGHT, WRONG, UNGRADABLE = SERIES[0], SERIES[1], SERIES[7]
CURVES = {"pass@": "pass@k", "maj@": "maj@k", "best-of-": "best-of-k"}
LENGTH_BINS, LENGTH_PARTS = 32, 5
LOGARITHMIC_ABOVE = 30
"""Lengths are drawn on a logarithmic axis where it reaches more than so many times the median."""
LONGEST_LABEL = 28
MOST_PARTS = 20
"""Levels or subjects that one chart can name; the largest are taken."""


def draw_all(
    name: str,
    estimates: Mapping[str, Estimate],
    accuracy_by: Mapping[str, Mapping[str, Estimate]],
    answers: Sequence[Answer],
    max_tokens: int,
) -> list[Drawing]:
    """Every chart that the benchmark `name` has data for, in reading order; `answers` are all of its samples.

    `accuracy_by` has accuracies by value, for `level` and for `subject`.
    """
    groups = group(answers)
    drawings = []
    with matplotlib.rc_context(STYLE):
        if "pass@1" in estimates:
            drawings += [draw_over_k(name, estimates), draw_solved(name, groups)]
        drawings.append(draw_lengths(name, answers, max_tokens))
        overall = next(iter(estimates.values())).value
        if (drawing := draw_accuracy_by_length(name, groups, overall)) is not None:
            drawings.append(drawing)
        for key, parts in accuracy_by.items():
            sizes = Counter(_part_of(samples[0], key) for samples in groups.values())
            drawings.append(draw_parts(name, key, parts, sizes, overall))
    return drawings


def _part_of(answer: Answer, key: str) -> str:
    value = getattr(answer, key)
    return "(none)" if value is None else value


def draw_over_k(name: str, estimates: Mapping[str, Estimate]) -> Drawing:
    """pass@k as a line with its band; maj@k and best-of-k as points with bars."""
    figure, axes = canvas("samples (k)")
    shown = []
    for index, (prefix, label) in enumerate(CURVES.items()):
        by_k = {int(n.removeprefix(prefix)): e for n, e in estimates.items() if n.startswith(prefix)}
        if not by_k:
            continue
        shown += by_k.values()
        value, low, high = (
            np.array([getattr(e, part) for e in by_k.values()]) for part in ("value", "low", "high")
        )
        colour = SERIES[index]
        if prefix == "pass@":
            axes.fill_between(list(by_k), low, high, color=colour, alpha=0.15, linewidth=0)
            dots = [k - 1 for k in powers_of_two(len(by_k))]
            axes.plot(list(by_k), value, "o-", color=colour, markersize=3.5, label=label, markevery=dots)
        else:
            # beside the curve, or bars at the same k hide each other; a mean of k can be a hair outside its bounds
            ks, bars = np.array(list(by_k)) * (1.012 ** (2 * index - 1)), np.maximum([value - low, high - value], 0)
            axes.errorbar(
                ks, value, bars, color=colour, fmt="o--", markersize=3.5, linewidth=1, elinewidth=1, capsize=2,
                label=label,
            )  # fmt: skip
    k = sum(n.startswith("pass@") for n in estimates)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(powers_of_two(k) if k & (k - 1) == 0 else [*powers_of_two(k)[:-1], k]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    bottom, top = min(e.low for e in shown), max(e.high for e in shown)
    margin = 0.08 * max(top - bottom, 0.1)
    axes.set_ylim(max(0.0, bottom - margin), min(1.02, top + margin))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    add_legend(axes)
    rivals = "vote and best score" if any(n.startswith("best-of-") for n in estimates) else "vote"
    caption = f"One of k samples right; {rivals} of the first k. 95 % intervals."
    return Drawing(name, "Right answers over k", caption, f"pass@{k} {100 * estimates[f'pass@{k}'].value:.1f} %",
                   to_svg(figure))  # fmt: skip


def draw_solved(name: str, groups: Mapping[str, Sequence[Answer]]) -> Drawing:
    """How many questions have 0, 1, ... K right samples."""
    solved = Counter(sum(a.outcome == "right" for a in samples) for samples in groups.values())
    k = len(next(iter(groups.values())))
    figure, axes = canvas("right samples")
    counts = [solved[c] for c in range(k + 1)]
    bars = axes.bar(range(k + 1), counts, width=0.8, color=[WRONG, *[RIGHT] * k], alpha=0.8)
    if k <= 16:
        axes.bar_label(bars, labels=[str(c) if c else "" for c in counts], fontsize=7, color=MUTED, padding=1)
    axes.xaxis.set_major_locator(MaxNLocator(min(k, 16), integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_xlim(-0.6, k + 0.6)
    axes.set_ylim(0, max(counts) * 1.12)
    caption = f"Questions by how many of their {k} samples are right."
    return Drawing(name, "Solved how often", caption, f"never {counts[0]}, always {counts[k]}", to_svg(figure))


def draw_lengths(name: str, answers: Sequence[Answer], max_tokens: int) -> Drawing:
    """Samples by length, right and not right stacked, with the token limit where lengths come near it."""
    tokens = {o: np.array([a.tokens for a in answers if a.outcome == o]) for o in ("right", "wrong", "ungradable")}
    every = np.concatenate(list(tokens.values()))
    middle, longest = float(np.median(every)), int(every.max())
    shows_limit = longest > max_tokens / 2
    end = max(longest, max_tokens) if shows_limit else max(longest, 1)
    figure, axes = canvas("tokens")
    if end > LOGARITHMIC_ABOVE * max(middle, 1):
        axes.set_xscale("log")
        edges = np.unique(np.geomspace(max(every.min(), 1), end + 1, LENGTH_BINS + 1).round())
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        edges = np.unique(np.linspace(0, end + 1, LENGTH_BINS + 1).round())
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    bottom = np.zeros(len(edges) - 1)
    for (outcome, lengths), colour in zip(tokens.items(), (RIGHT, WRONG, UNGRADABLE), strict=True):
        # an empty completion belongs to the first bin of a logarithmic axis, which has no 0
        counts, _ = np.histogram(np.maximum(lengths, edges[0]), edges)
        if len(lengths):
            axes.bar(edges[:-1], counts, np.diff(edges), bottom, align="edge", color=colour, alpha=0.8, label=outcome)
        bottom += counts
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_ylim(0, bottom.max() * 1.08)
    if shows_limit:
        axes.axvline(max_tokens, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label=f"limit {max_tokens:,}")
    add_legend(axes)
    medians = [f"{outcome} {median(lengths.tolist()):,.0f}" for outcome, lengths in tokens.items() if len(lengths)]
    caption = f"Samples by tokens. Medians: {', '.join(medians)}."
    if not shows_limit:
        caption += f" The limit of {max_tokens:,} is far from the longest, {longest:,}."
    return Drawing(name, "Completion length", caption, f"median {middle:,.0f}", to_svg(figure))


def draw_accuracy_by_length(name: str, groups: Mapping[str, Sequence[Answer]], overall: float) -> Drawing | None:
    """Accuracy by fifths of the lengths, and of the samples that were cut off; None where the lengths are all alike."""
    ended = [a.tokens for samples in groups.values() for a in samples if a.finish_reason == "stop"]
    parts = {f"{low:,}–{high:,}": partial(_is_between, low, high) for low, high in _fifths(ended)}
    parts["cut off"] = lambda a: a.finish_reason == "length"
    found = {label: e for label, holds in parts.items() if (e := _accuracy_where(groups, holds)) is not None}
    if len(found) < 2:
        return None
    figure, axes = canvas("tokens")
    value, low, high = (np.array([getattr(e, part) for e in found.values()]) for part in ("value", "low", "high"))
    bars = np.maximum([value - low, high - value], 0)
    axes.errorbar(range(len(found)), value, bars, color=RIGHT, fmt="o", markersize=4.5, elinewidth=1.4, capsize=2.5)
    axes.axhline(overall, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set_xticks(range(len(found)), list(found))
    axes.set_xlim(-0.5, len(found) - 0.5)
    scale_y(axes, high.tolist(), share=True)
    caption = "Fifths of the completions by tokens, 95 % intervals; dashed: all."
    return Drawing(name, "Accuracy by length", caption, "", to_svg(figure))


def _fifths(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Shortest and longest of each fifth; equal lengths are in one fifth, so there may be fewer."""
    if not lengths:
        return []
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, LENGTH_PARTS + 1), method="inverted_cdf")).tolist()
    starts = [edges[0], *(edge + 1 for edge in edges[1:-1])]
    return list(zip(starts, edges[1:] or edges, strict=True))


def _is_between(low: int, high: int, answer: Answer) -> bool:
    return answer.finish_reason == "stop" and low <= answer.tokens <= high


def _accuracy_where(groups: Mapping[str, Sequence[Answer]], holds: Callable[[Answer], bool]) -> Estimate | None:
    """Right samples of a question among those that `holds` is true for, averaged over the questions that have any."""
    chosen = [[a.outcome == "right" for a in samples if holds(a)] for samples in groups.values()]
    shares = [sum(outcomes) / len(outcomes) for outcomes in chosen if outcomes]
    return over_questions(shares) if shares else None


def draw_parts(
    name: str, key: str, parts: Mapping[str, Estimate], sizes: Mapping[str, int], overall: float
) -> Drawing:
    """Accuracy by level or subject (`key`), a row each, with the number of questions; `overall` is a dashed line."""
    chosen = sorted(sorted(parts, key=lambda part: -sizes[part])[:MOST_PARTS], key=list(parts).index)
    figure, axes = canvas("right", 0.62 + 0.23 * len(chosen))
    labels = [f"{cut(printable(part), LONGEST_LABEL)}  ({sizes[part]})" for part in chosen]
    rows = range(len(chosen))
    value, low, high = (np.array([getattr(parts[p], part) for p in chosen]) for part in ("value", "low", "high"))
    bars = np.maximum([value - low, high - value], 0)
    axes.errorbar(value, rows, xerr=bars, color=RIGHT, fmt="o", markersize=4.5, elinewidth=1.4, capsize=2.5)
    axes.axvline(overall, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set_yticks(rows, labels)
    axes.set_ylim(len(chosen) - 0.4, -0.6)
    axes.set_xlim(0, 1.02)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", visible=True)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    caption = "Questions in brackets, 95 % intervals; dashed: all."
    if len(chosen) < len(parts):
        caption += f" The {MOST_PARTS} largest of {len(parts)}; the others are in summary.json."
    return Drawing(name, f"Accuracy by {key}", caption, "", to_svg(figure))
