"""A run's curves as inline SVG that follows the page's light or dark colours."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.ticker import MaxNLocator

from rlhf.training.report.charts import BAD, MUTED, SERIES, STYLE, Drawing, add_legend, canvas, scale_y, to_svg
from rlhf.training.report.evaluation_figures import by_figure, main_figure

Records = Sequence[Mapping[str, Any]]

AREA_BINS = 150
"""A stacked area of more steps is averaged into this many, or the paths dominate the page's size."""

BESIDE_LEARNING = ("time/generate", "time/reward", "time/overlap")
"""Seconds that are, with `batch.staleness`, in those of other phases."""


@dataclass(frozen=True)
class Chart:
    """One chart to draw: curves of metrics that share a unit."""

    section: str
    title: str
    caption: str
    names: Mapping[str, str]
    """Label by metric name; a name ending in `/` stands for every metric of that section."""
    share: bool = False
    """Values are shares of 1, shown in percent from 0."""
    reference: float | None = None
    """Where a dashed line shows what the value should be."""
    leave_out: tuple[str, ...] = ()
    smooth: bool = True
    """Dots and a running mean; else the values joined as they are, for what has no noise."""


CHARTS = (
    Chart("Learning", "Reward", "Weighted sum of all parts: dots are steps, the line is their running mean.",
          {"reward/mean": "reward"}),
    Chart("Learning", "Reward by part", "Mean of each reward function before its weight.", {"reward/": ""},
          leave_out=("reward/mean", "reward/group_std")),
    Chart("Learning", "Reward of a turn while training", "What the environment paid, mean over the turns of the step's "
          "sessions.", {"dialogue/reward_per_turn": "reward"}),
    Chart("Learning", "Right answers while training", "Share of completions that the grader called right.",
          {"grading/right_share": "right"}, share=True),
    Chart("Learning", "Groups without a signal", "All completions of a prompt had the same reward: nothing to learn.",
          {"groups/zero_signal_share": "groups"}, share=True),
    Chart("Policy", "Entropy", "Per token, in nats. A fall to zero means the policy stopped exploring.",
          {"policy/entropy": "entropy"}),
    Chart("Policy", "Importance ratio", "Learner over engine (and over old policy), mean over tokens: 1 on-policy.",
          {"policy/engine_ratio_mean": "learner / engine", "policy/ratio_mean": "new / old"}, reference=1.0),
    Chart("Policy", "KL divergence", "Estimates in nats per token.",
          {"policy/kl_engine": "to the engine", "policy/kl_reference": "to the reference", "policy/kl": "KL"}),
    Chart("Policy", "Clipped tokens", "Share of tokens whose ratio left the clip range.",
          {"policy/clip_low_share": "below", "policy/clip_high_share": "above"}, share=True),
    Chart("Curvature", "Rejected tokens", "Share of tokens that did not count in their optimizer step.",
          {"capo/reject_share": "all", "capo/reject_positive_share": "advantage above 0",
           "capo/reject_negative_share": "below 0"}, share=True),
    Chart("Curvature", "Rejected tokens by probability", "Rare tokens with a positive advantage are exploration.",
          {"capo/reject_rare_share": "below 0.1", "capo/reject_middle_share": "between",
           "capo/reject_likely_share": "above 0.9"}, share=True),
    Chart("Curvature", "Policy shift of a token's own step", "m_F in nats, 99th percentile of a step, and its bound.",
          {"capo/policy_shift_p99": "all tokens", "capo/policy_shift_accepted_p99": "accepted",
           "capo/max_policy_shift": "bound"}),
    Chart("Curvature", "Objective shift of a token's own step", "|m_H|, 99th percentile of a step, and its bound.",
          {"capo/objective_shift_size_p99": "all tokens", "capo/objective_shift_size_accepted_p99": "accepted",
           "capo/max_objective_shift": "bound"}),
    Chart("Curvature", "Predicted and measured KL", "Mean over tokens, in nats: by the head's real step alone, and of "
          "the whole model.", {"capo/batch_kl": "predicted", "capo/kl_measured": "measured"}),
    Chart("Curvature", "Do predictions rank tokens as they moved?", "Spearman's correlation of m_F with the measured "
          "shift.", {"capo/predicted_measured_spearman": "correlation"}, reference=0.0),
    Chart("Preferences", "Pairs ordered right", "Share of the step's pairs whose chosen completion has the higher "
          "implicit reward, before the update.", {"rewards/accuracies": "pairs"}, share=True),
    Chart("Preferences", "Implicit rewards", "beta times the log-ratio to the reference, mean over pairs.",
          {"rewards/chosen": "chosen", "rewards/rejected": "rejected", "rewards/margins": "margin"}, reference=0.0),
    Chart("Preferences", "Log-probs of the pairs", "Summed over a completion, in nats. Both falling is likelihood "
          "displacement.", {"logps/chosen": "chosen", "logps/rejected": "rejected"}),
    Chart("Preferences", "Calibration completions", "Mean log-ratio to the reference: optimism lowers it, pessimism "
          "raises it.", {"value/cal_logratio": "log-ratio"}, reference=0.0),
    Chart("Preferences", "Parts of the loss", "The pairs' loss, and the value term sign x alpha x beta x log-ratio.",
          {"loss/preference": "pairs", "loss/value": "value"}),
    Chart("Critic", "Explained variance", "Of fresh rollouts' returns, by the critic's values. At 0 it knows nothing "
          "but the mean; below, it misleads.", {"critic/explained_variance": "explained"}, reference=0.0),
    Chart("Critic", "Values and returns", "Mean over tokens.",
          {"critic/value_mean": "values", "critic/target_mean": "targets"}),
    Chart("Critic", "Optimism", "The frozen critic's value of a prompt less the mean reward; below 0 it promises too "
          "little.", {"critic/optimism_gap": "value less reward"}, reference=0.0),
    Chart("Critic", "Exchanges", "What has come together since the critic that guides the policy was exchanged: nats, "
          "or excess loss.",
          {"switch/statistic": "since the last", "switch/threshold": "exchanged at"}, smooth=False),
    Chart("Critic", "Do the members know how wrong they are?", "Share of unseen episodes whose return is within one, "
          "and two, of the members' standard deviations.",
          {"critic/within_one_std": "one", "critic/within_two_std": "two"}, share=True),
    Chart("Critic", "How far the policy leans on the critic", "kappa, in nats for a whole unit of value.",
          {"actor/kappa": "kappa"}, smooth=False),
    Chart("Critic", "Disagreement", "Standard deviation of the members' values, mean over states.",
          {"critic/spread": "spread"}),
    Chart("Gain", "Reward for a unit of cost", "What the members have learned, what the policy is planned with, and "
          "what its own episodes say.",
          {"gain/mean": "members", "gain/planned": "planned", "gain/renewal": "of the policy"}),
    Chart("Gain", "Value of prompts", "Held at 0 by the gain: what is left is a gain that lags behind.",
          {"gain/prompt_value": "value"}, reference=0.0),
    Chart("Optimisation", "Gradient norm", "Before clipping.", {"gradient/norm": "norm"}),
    Chart("Optimisation", "Learning rate", "At the last optimizer step of each step.", {"optimizer/lr": "rate"},
          smooth=False),
    Chart("Optimisation", "Loss", "The policy loss is not a measure of success: look at the reward.", {"loss": "loss"}),
    Chart("Rollouts", "Completion length", "Mean tokens per completion.", {"tokens/completion_mean": "tokens"}),
    Chart("Rollouts", "Turns of a session", "Mean number of the model's turns.", {"dialogue/turns_mean": "turns"}),
    Chart("Rollouts", "Tokens of a turn", "Mean tokens that the model writes in a turn.",
          {"dialogue/own_tokens_per_turn": "tokens"}),
    Chart("Rollouts", "Tokens of the environment", "Share of a session's tokens, which are read and not learned.",
          {"dialogue/environment_token_share": "tokens"}, share=True),
    Chart("Rollouts", "Cut off and ungradable", "Completions that hit the token limit, and those without a verdict.",
          {"tokens/truncated_share": "cut off", "grading/ungradable_share": "ungradable"}, share=True),
    Chart("Speed", "Throughput", "Tokens per second.", {"speed/tokens_per_second": "tokens/s"}),
    Chart("Speed", "Generation ahead", "Seconds of a step in which samples were made beside the update, and in which "
          "the learner waited for them.", {"time/overlap": "beside the update", "time/wait": "waited"}),
    Chart("Speed", "Staleness", "Steps from the weights that made the samples to those that learn from them.",
          {"staleness/mean": "mean", "staleness/max": "largest"}, smooth=False),
)


def draw_all(metrics: Records, evaluations: Records) -> list[Drawing]:
    """Every chart that has data, in reading order: evaluations, `CHARTS`, time by phase."""
    with matplotlib.rc_context(STYLE):
        drawings = [
            draw_evaluations(records) for records in by_figure(evaluations) if len({r["step"] for r in records}) > 1
        ]
        drawings += [drawing for chart in CHARTS if (drawing := draw_curves(chart, metrics)) is not None]
        if any(name.startswith("time/") and name != "time/step" for record in metrics for name in record):
            drawings.append(draw_phases(metrics))
    return drawings


def draw_curves(chart: Chart, metrics: Records) -> Drawing | None:
    """Dots and a running mean for each metric of the chart; None when the run has none of them."""
    labels = _labels(chart, metrics)
    if not labels:
        return None
    figure, axes = canvas("step")
    everything: list[float] = []
    for index, (name, label) in enumerate(labels.items()):
        steps, values = series(metrics, name)
        finite = np.isfinite(values)
        colour = SERIES[index % len(SERIES)]
        if chart.smooth:
            axes.plot(steps[finite], values[finite], "o", color=colour, markersize=2.6, alpha=0.4, markeredgewidth=0)
        axes.plot(steps, running_mean(values) if chart.smooth else values, color=colour, label=label)
        if len(steps) == 1:
            axes.plot(steps[finite], values[finite], "o", color=colour, markersize=4)
            axes.set_xlim(steps[0] - 1, steps[0] + 1)
        if not finite.all():
            axes.plot(steps[~finite], np.zeros((~finite).sum()), "x", color=BAD, markersize=5, clip_on=False,
                      transform=axes.get_xaxis_transform(), label=f"{label} not finite", zorder=5)
        everything += values[finite].tolist()
    if chart.reference is not None:
        axes.axhline(chart.reference, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
    scale_y(axes, everything, chart.share)
    if len(axes.get_legend_handles_labels()[0]) > 1:
        add_legend(axes)
    latest = ""
    if len(labels) == 1:
        latest = f"{100 * values[-1]:.1f} %" if chart.share else f"{values[-1]:.4g}"
    return Drawing(chart.section, chart.title, chart.caption, latest, to_svg(figure))


def draw_evaluations(evaluations: Records) -> Drawing:
    """The main figure of evaluations that have the same one, by set, with 95 % intervals as bars and bands."""
    first = main_figure(evaluations[0])
    figure, axes = canvas("step")
    everything: list[float] = []
    names = list(dict.fromkeys(record["name"] for record in evaluations))
    for index, name in enumerate(names):
        records = sorted((r for r in evaluations if r["name"] == name), key=lambda r: r["step"])
        steps = [r["step"] for r in records]
        accuracy, low, high = (np.array([float(r[key]) for r in records]) for key in (first.name, "low", "high"))
        everything += [*low[np.isfinite(low)], *high[np.isfinite(high)], *accuracy[np.isfinite(accuracy)]]
        colour = SERIES[index % len(SERIES)]
        # Rounding may put a bound a hair on the wrong side of the value, which errorbar refuses.
        bars = np.maximum([accuracy - low, high - accuracy], 0)
        axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.errorbar(steps, accuracy, bars, color=colour, fmt="o-", markersize=4, elinewidth=1, capsize=2, label=name)
    scale_y(axes, [1.0] if first.is_share else [0.0, *everything], share=first.is_share)
    if len(names) > 1:
        add_legend(axes)
    latest = main_figure(evaluations[-1]).short
    title = f"Held-out {first.label}"
    return Drawing("Learning", title, "Bars and bands are 95 % intervals.", latest, to_svg(figure))


def draw_phases(metrics: Records) -> Drawing:
    """Seconds per step by phase, stacked; what no phase claims is `other`. Where generation goes on beside the updates,
    a step has the seconds that it was waited for."""
    names = list(dict.fromkeys(n for r in metrics for n in r if n.startswith("time/") and n != "time/step"))
    if "time/wait" in names:
        names = [name for name in names if name not in BESIDE_LEARNING]
    steps = np.array([float(r["step"]) for r in metrics])
    rows = np.array([[_finite(r.get(name, 0.0)) for r in metrics] for name in names])
    total = np.array([_finite(r.get("time/step", 0.0)) for r in metrics])
    rows = np.vstack([rows, np.maximum(total - rows.sum(axis=0), 0)])
    labels = [name.removeprefix("time/") for name in names] + ["other"]
    if len(steps) > AREA_BINS:
        edges = np.linspace(0, len(steps), AREA_BINS + 1).astype(int)[:-1]
        sizes = np.diff([*edges, len(steps)])
        steps, rows = np.add.reduceat(steps, edges) / sizes, np.add.reduceat(rows, edges, axis=1) / sizes
    figure, axes = canvas("step")
    colours = [SERIES[i % len(SERIES)] for i in range(len(names))] + [MUTED]
    if len(steps) == 1:
        axes.bar(labels, rows[:, 0], color=colours, alpha=0.8, width=0.5)
    else:
        axes.stackplot(steps, rows, labels=labels, colors=colours, alpha=0.8, linewidth=0)
        axes.margins(x=0)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        add_legend(axes)
    axes.set_ylim(bottom=0)
    latest = f"{total.mean():.3g} s per step" if len(total) and total.any() else ""
    return Drawing("Speed", "Time by phase", "Wall seconds of each step.", latest, to_svg(figure))


def series(records: Records, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of a metric, where it is given."""
    pairs = [(float(r["step"]), float(r[name])) for r in records if isinstance(r.get(name), int | float)]
    return np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])


def running_mean(values: np.ndarray) -> np.ndarray:
    """Mean over the nearest steps, about a twentieth of the run to each side (fewer at the ends); NaN is left out."""
    half = len(values) // 20
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    seen = counts[high] - counts[low]
    return np.where(seen > 0, (sums[high] - sums[low]) / np.maximum(seen, 1), np.nan)


def sparkline(values: Sequence[float], width: int = 120, height: int = 22) -> str:
    """Points of an SVG polyline through the finite values, at most one per pixel."""
    array = np.asarray(values, dtype=float)
    array = array[np.isfinite(array)]
    if len(array) < 2:
        return ""
    if len(array) > width:
        array = np.array([chunk.mean() for chunk in np.array_split(array, width)])
    low, span = array.min(), np.ptp(array)
    heights = (array - low) / span if span > 0 else np.full(len(array), 0.5)
    xs = np.linspace(1, width - 1, len(array))
    return " ".join(f"{x:.1f},{height - 2 - y * (height - 4):.1f}" for x, y in zip(xs, heights, strict=True))


def _labels(chart: Chart, metrics: Records) -> dict[str, str]:
    """Label by metric name, for the metrics that the run has a number of."""
    known = dict.fromkeys(k for r in metrics for k, v in r.items() if isinstance(v, int | float))
    labels = {}
    for name, label in chart.names.items():
        if name.endswith("/"):
            members = [k for k in known if k.startswith(name) and k not in chart.leave_out]
            # matplotlib leaves labels that begin with an underscore out of legends.
            labels |= {k: k.removeprefix(name).lstrip("_") or k for k in members}
        elif name in known:
            labels[name] = label
    return labels


def _finite(value: float) -> float:
    return float(value) if math.isfinite(value) else 0.0
