"""Regret of the exact tabular cores: LOOP against learners without optimism, NORA against its ablations.

    python benchmarks/regret.py                                     # two minutes on one core
    python benchmarks/regret.py --quick                             # does it run?
    python benchmarks/regret.py --out benchmarks/results/NAME.md    # the tables, and curves beside them

Average reward: the two-state process, whose myopic action is comfortable, and RiverSwim with six states; gap regret
sum V*(s) - Q*(s, a). Episodes: a lock of six actions out of three, with a lure for giving up; regret sum V* - V^pi.
Every number is a mean over seeds, and each seed is a run that its number alone determines. With beta 0.05 optimism is
not guaranteed: where it fails early, as in a seed that gives up on leaving the first of the two states,
that seed's regret is linear and most of the mean.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from peers import table

from rlhf.algorithms.tabular.average_reward_baselines import run_differential_q_learning, run_greedy
from rlhf.algorithms.tabular.loop import LoopSettings, run_loop
from rlhf.algorithms.tabular.mdp import TabularMDP, combination_lock, half_right_policy, river_swim, two_state
from rlhf.algorithms.tabular.nora import NoraRun, NoraSettings, OfflineData, run_nora
from rlhf.algorithms.tabular.regret import LearningRecord, doubling_marks, log_log_slope
from rlhf.algorithms.tabular.relative_value_iteration import solve_average_reward

Method = Callable[[int, Sequence[int], int], tuple[LearningRecord, float | None]]
"""From (steps, marks, seed) to the record, and V/V* at the end where there are episodes."""

CURVE_POINTS = 60
COVERING = OfflineData(200, half_right_policy())
NO_OPTIMISM = NoraSettings(is_optimistic=False, switching="rare_or_doubling")
EACH = NoraSettings(0.5, switching="every_episode")
NORA: dict[str, tuple[NoraSettings, OfflineData | None]] = {
    "NORA, eta 0.5": (NoraSettings(0.5), None),
    "NORA, anytime": (NoraSettings(), None),
    "NORA, eta 0.05": (NoraSettings(0.05), None),
    "NORA, eta of the bound": (NoraSettings("theory"), None),
    "NORA, eta 0.5, beta 1": (NoraSettings(0.5, beta=1), None),
    "no reset": (NoraSettings(0.5, reset="none"), None),
    "greedy in f": (NoraSettings(actor="greedy"), None),
    "switch and reset every episode": (EACH, None),
    "switch every episode, no reset": (NoraSettings(0.5, switching="every_episode", reset="none"), None),
    "DOUHUA": (NoraSettings(0.5, switching="every_episode", reset="none", target="policy"), None),
    "not optimistic": (NO_OPTIMISM, None),
    "not optimistic, 200 offline": (NO_OPTIMISM, COVERING),
    "NORA, anytime, 200 offline": (NoraSettings(), COVERING),
}


@dataclass(frozen=True)
class Task:
    """`methods` by name."""

    title: str
    steps: int
    methods: Mapping[str, Method]


@dataclass(frozen=True)
class Summary:
    """Of one method over seeds: `regret`, `switches` at `marks`; `curves` a seed, at `curve_marks`."""

    method: str
    marks: tuple[int, ...]
    regret: list[float]
    regret_sd: float
    slope: float
    switches: list[float]
    switches_max: int
    plans: int
    violations: int
    optimality: float | None
    optimality_min: float | None
    curve_marks: tuple[int, ...]
    curves: list[list[float]]


@dataclass(frozen=True)
class Bar:
    """What a figure must be."""

    claim: str
    measured: float
    is_met: bool


def main() -> None:
    """Run all, print the tables and whether the bars are met, and where asked write them with the curves."""
    arguments = parse_arguments()
    found = {task.title: measure(task, arguments.seeds) for task in tasks(arguments.quick)}
    judged = [] if arguments.quick else bars(found)
    report = lay_out(found, arguments.seeds, judged)
    if arguments.json:
        tables = {title: [asdict(summary) for summary in summaries] for title, summaries in found.items()}
        print(json.dumps({"tables": tables, "bars": [asdict(bar) for bar in judged]}, indent=1))
    else:
        print(report)
    if arguments.out is not None:
        picture = arguments.out.with_suffix(".png")
        draw(found, picture)
        text = f"{report}\n![mean regret over time]({picture.name})\n\n{table.machine_text(table.machine())}\n"
        arguments.out.write_text(text, encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="3 seeds of short runs, which no bar is for")
    parser.add_argument("--json", action="store_true", help="print the same as JSON, with every seed's curve")
    parser.add_argument("--out", type=Path, help="write the tables to this markdown file, their curves beside it")
    parsed = parser.parse_args()
    if parsed.quick:
        parsed.seeds = 3
    if parsed.seeds < 2:
        parser.error("--seeds must be at least 2: one run has no spread")
    return parsed


def tasks(is_quick: bool) -> list[Task]:
    """All that is measured."""
    lock = combination_lock()

    def on_lock(name: str, steps: int, marks: Sequence[int], seed: int) -> tuple[LearningRecord, float]:
        settings, offline = NORA[name]
        run: NoraRun = run_nora(lock, settings, episodes=steps, seed=seed, offline=offline, marks=marks)
        return run.record, run.optimality

    return [
        Task("Two states", 3200 if is_quick else 50_000, average_reward_methods(two_state())),
        Task("RiverSwim, six states", 6400 if is_quick else 200_000, average_reward_methods(river_swim())),
        Task("Lock of six steps", 512 if is_quick else 16_384, {name: partial(on_lock, name) for name in NORA}),
    ]


def average_reward_methods(mdp: TabularMDP) -> dict[str, Method]:
    span = solve_average_reward(mdp).span

    def loop(beta: float, steps: int, marks: Sequence[int], seed: int) -> tuple[LearningRecord, None]:
        return run_loop(mdp, LoopSettings(span, beta), steps=steps, seed=seed, marks=marks), None

    return {
        "LOOP, beta 0.5": partial(loop, 0.5),
        "LOOP, beta 0.05": partial(loop, 0.05),
        "greedy": lambda steps, marks, seed: (run_greedy(mdp, span=span, steps=steps, seed=seed, marks=marks), None),
        "differential Q-learning": lambda steps, marks, seed: (
            run_differential_q_learning(mdp, steps=steps, seed=seed, marks=marks), None
        ),
    }  # fmt: skip


def measure(task: Task, seeds: int) -> list[Summary]:
    """Every method's runs, one line each on stderr."""
    marks = doubling_marks(task.steps)
    spread = np.geomspace(max(1, task.steps // 1000), task.steps, CURVE_POINTS).round().astype(int).tolist()
    curve_marks = sorted({*spread, *marks})
    summaries = []
    for name, method in task.methods.items():
        outcomes = []
        for seed in range(seeds):
            outcomes.append(method(task.steps, curve_marks, seed))
            record, _ = outcomes[-1]
            print(
                f"{task.title}, {name}, seed {seed}: regret {record.regret[-1]:.0f}, {len(record.switches)} switches",
                file=sys.stderr, flush=True,
            )  # fmt: skip
        summaries.append(summarise(name, marks, outcomes))
    return summaries


def summarise(name: str, marks: Sequence[int], outcomes: Sequence[tuple[LearningRecord, float | None]]) -> Summary:
    """Means over seeds. Every record must have the `marks` among its own."""
    records = [record for record, _ in outcomes]
    curves = [list(record.regret) for record in records]
    places = [records[0].marks.index(mark) for mark in marks]
    regret = [statistics.mean(curve[place] for curve in curves) for place in places]
    optimality = [value for _, value in outcomes if value is not None]
    return Summary(
        method=name,
        marks=tuple(marks),
        regret=regret,
        regret_sd=statistics.stdev(curve[-1] for curve in curves),
        slope=log_log_slope(marks, regret),
        switches=[statistics.mean(record.switches_by(mark) for record in records) for mark in marks],
        switches_max=max(len(record.switches) for record in records),
        plans=sum(len(record.switches) for record in records),
        violations=sum(record.violations for record in records),
        optimality=statistics.mean(optimality) if optimality else None,
        optimality_min=min(optimality, default=None),
        curve_marks=records[0].marks,
        curves=curves,
    )


def bars(found: Mapping[str, Sequence[Summary]]) -> list[Bar]:
    """What full runs must reach."""
    by_name = {(title, summary.method): summary for title, summaries in found.items() for summary in summaries}
    loop, greedy = (by_name["RiverSwim, six states", name] for name in ("LOOP, beta 0.5", "greedy"))
    nora = by_name["Lock of six steps", "NORA, eta 0.5"]
    return [
        Bar("RiverSwim, LOOP, beta 0.5: mean gap regret at most 1,000", loop.regret[-1], loop.regret[-1] <= 1000),
        Bar("RiverSwim, LOOP, beta 0.5: switches at most 30", loop.switches_max, loop.switches_max <= 30),
        Bar("RiverSwim, LOOP, beta 0.5: slope at most 0.3", loop.slope, loop.slope <= 0.3),
        Bar("RiverSwim, greedy must fail: regret at least 80,000", greedy.regret[-1], greedy.regret[-1] >= 80_000),
        Bar("Lock, NORA, eta 0.5: mean regret at most 200", nora.regret[-1], nora.regret[-1] <= 200),
        Bar("Lock, NORA, eta 0.5: V/V* at least 0.99 in all seeds", nora.optimality_min, nora.optimality_min >= 0.99),
    ]


def lay_out(found: Mapping[str, Sequence[Summary]], seeds: int, judged: Sequence[Bar]) -> str:
    """The tables and how to read them, as markdown."""
    parts = [
        "# Regret of LOOP and NORA on finite processes",
        f"{seeds} seeds. Mean regret at T/16, T/8, T/4, T/2 and T, standard deviation at T; slope: x of regret ~ T^x "
        "at the last three. Switches: hypotheses in use, the first one included, at T/4, T/2 and T, and the most of "
        "any seed; violations: those that promised less than the optimum, of all. Differential Q-learning has none.",
    ]
    for title, summaries in found.items():
        marks, has_value = summaries[0].marks, summaries[0].optimality is not None
        unit = "episodes" if has_value else "steps"
        header = [f"{title}, T = {marks[-1]:,} {unit}", *(f"at {mark:,}" for mark in marks)]
        header += ["sd", "slope", "switches", "most", "violations", *(["V/V* (least)"] if has_value else [])]
        lines = [table_line(summary) for summary in summaries]
        parts.append(table.markdown(header, lines))
    if judged:
        verdicts = [
            [bar.claim, f"{without_sign(bar.measured, 3):,}", "met" if bar.is_met else "**missed**"] for bar in judged
        ]
        parts.append(table.markdown(["bar", "measured", ""], verdicts))
    else:
        parts.append("Quick runs: no bar is for them.")
    return "\n\n".join(parts) + "\n"


def table_line(summary: Summary) -> list[str]:
    is_frozen = summary.plans > 0
    cells = [summary.method, *(f"{value:,.0f}" for value in summary.regret), f"{summary.regret_sd:,.0f}"]
    cells.append(f"{without_sign(summary.slope, 2):.2f}")
    cells.append(", ".join(f"{value:,.1f}" for value in summary.switches[2:]) if is_frozen else "")
    cells.append(f"{summary.switches_max:,}" if is_frozen else "")
    cells.append(f"{summary.violations:,}/{summary.plans:,}" if is_frozen else "")
    if summary.optimality is not None:
        cells.append(f"{summary.optimality:.3f} ({summary.optimality_min:.3f})")
    return cells


def without_sign(value: float, digits: int) -> float:
    """Rounded, and 0 where that is -0."""
    return round(value, digits) + 0.0


def draw(found: Mapping[str, Sequence[Summary]], path: Path) -> None:
    """One panel a task: mean regret over time, both logarithmic, and the range of seeds as a band."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(found), figsize=(6 * len(found), 5), layout="constrained")
    for axes, (title, summaries) in zip(panels, found.items(), strict=True):
        for number, summary in enumerate(summaries):
            curves = np.maximum(np.array(summary.curves), 0.1)
            style: dict[str, Any] = {"linestyle": "-" if number < 10 else "--"}
            (line,) = axes.loglog(summary.curve_marks, curves.mean(0), label=summary.method, **style)
            axes.fill_between(
                summary.curve_marks, curves.min(0), curves.max(0), color=line.get_color(), alpha=0.12, linewidth=0
            )
        axes.set(title=title, xlabel="steps" if summaries[0].optimality is None else "episodes", ylabel="regret")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
