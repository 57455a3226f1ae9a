"""Generation one step ahead of the learner against one after the other: seconds of a step, and what is learned.

    python benchmarks/staleness.py --out benchmarks/results/staleness_cpu_DATE.md
    python benchmarks/staleness.py --quick                                             # does it run?

Runs of `recipes/grpo.py` on the demo's sums, one after the other and in turn, each a process of its own, with the same
correction for the engine's log-probs: `batch.staleness` is all that differs. Times are of all steps but a run's first,
which has nothing to overlap with. Runs are kept under --folder and not repeated.

To overlap takes two devices, or cores to spare: with T threads, 2 T cores. On fewer both sides slow each other down.
"""

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from peers import comparison, table
from peers.recipe_runs import ROOT, finished_run

from rlhf.training.statistics import wilson_interval

CONFIG = ROOT / "configs" / "grpo" / "demo_arithmetic.yaml"
TIMES = {"step": "s a step", "generate": "generate", "update": "update", "wait": "waited", "overlap": "beside"}
"""Columns by the timer's phases."""
RATIO = "policy/engine_ratio_mean"


@dataclass(frozen=True)
class Outcome:
    """One run: seconds of its steps by phase, its held-out answers, and the mean reward of its last quarter."""

    seconds: dict[str, list[float]]
    right: int
    answers: int
    late_reward: float
    ratio_gap: float
    """Largest |mean ratio of learner and engine - 1|."""


def main() -> None:
    """Run what is missing, print the table, and where asked write it."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    found: dict[int, list[Outcome]] = {staleness: [] for staleness in arguments.staleness}
    for seed in range(arguments.seeds):
        for staleness in arguments.staleness:
            found[staleness].append(run(arguments, staleness, seed))
    report = lay_out(arguments, found)
    print(report)
    if arguments.out is not None:
        arguments.out.write_text(f"{report}\n\n{table.machine_text(table.machine())}\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--staleness", type=int, nargs="+", default=[0, 1], help="the first is compared with")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1, help="of torch, in each of the two threads")
    parser.add_argument("--engine", choices=["transformers", "vllm"], default="vllm")
    parser.add_argument("--model", default="embedded:smollm2-135m-instruct")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "staleness", help="runs are kept here")
    parser.add_argument("--out", type=Path, help="write the table to this markdown file")
    parser.add_argument("--note", default="", help="what else is to be said of the machine")
    parser.add_argument("--quick", action="store_true", help="1 seed of 3 steps")
    parsed = parser.parse_args()
    if parsed.quick:
        parsed.seeds, parsed.steps = 1, 3
    if parsed.steps < 2:
        parser.error("--steps must be at least 2: the first of a run is not counted")
    return parsed


def run(arguments: argparse.Namespace, staleness: int, seed: int) -> Outcome:
    """One run as its own process, read from its folder where it was made before."""
    name = f"staleness{staleness}-{arguments.engine}-threads{arguments.threads}-steps{arguments.steps}-seed{seed}"
    settings = {
        "run.seed": seed, "batch.steps": arguments.steps, "batch.staleness": staleness, "model.path": arguments.model,
        "engine.type": arguments.engine, "algorithm.mismatch.level": "token", "evaluation.every": 0,
        "checkpoint.export": "false",
    }  # fmt: skip
    folder = finished_run("grpo", CONFIG, arguments.folder, name, settings)
    metrics, evaluation = folder.read_metrics(), folder.read_evaluations()[-1]
    seconds = {phase: [m.get(f"time/{phase}", 0.0) for m in metrics[1:]] for phase in TIMES}
    late = metrics[-max(1, arguments.steps // 4) :]
    outcome = Outcome(
        seconds, int(evaluation["right"]), int(evaluation["n"]), statistics.mean(m["reward/mean"] for m in late),
        # a step whose groups are all right or all wrong trains on no token and measures none
        max((abs(m[RATIO] - 1) for m in metrics if RATIO in m), default=0.0),
    )  # fmt: skip
    print(
        f"staleness {staleness}, seed {seed}: {statistics.mean(seconds['step']):.2f} s a step, {outcome.right} of "
        f"{outcome.answers} right", file=sys.stderr, flush=True,
    )  # fmt: skip
    return outcome


def lay_out(arguments: argparse.Namespace, found: Mapping[int, Sequence[Outcome]]) -> str:
    """A row for each staleness: means over seeds, pooled Wilson intervals, and the ratio of seconds to the first's."""
    first = found[arguments.staleness[0]]
    header = ["staleness (seeds)", *TIMES.values(), "x as fast [over seeds]", "held-out right, %", "late reward",
              "largest ratio gap"]  # fmt: skip
    rows = []
    for staleness, runs in found.items():
        right, answers = sum(each.right for each in runs), sum(each.answers for each in runs)
        low, high = wilson_interval(right, answers)
        speeds = [mean_seconds(a) / mean_seconds(b) for a, b in zip(first, runs, strict=True)]
        rows.append([
            f"{staleness} ({len(runs)})",
            *(f"{statistics.mean(mean_seconds(each, phase) for each in runs):.2f}" for phase in TIMES),
            f"{statistics.mean(speeds):.2f} [{min(speeds):.2f}, {max(speeds):.2f}]",
            f"{100 * right / answers:.1f} [{100 * low:.1f}, {100 * high:.1f}]",
            f"{statistics.mean(each.late_reward for each in runs):.3f}",
            f"{max(each.ratio_gap for each in runs):.3f}",
        ])  # fmt: skip
    notes = [
        f"# Generation ahead of the learner, {torch.get_num_threads()} thread(s) for each side\n",
        f"{arguments.model} on the demo's sums (`{CONFIG.relative_to(ROOT)}`), {arguments.engine} engine, "
        f"{arguments.steps} steps, in turn. Mean seconds of a step after the first; `waited`: of the learner for "
        "generation; `beside`: of generation beside the update. Held-out answers of all seeds together with their "
        "Wilson interval; late: the last quarter of the steps; ratio: mean of learner over engine, before correction."
        f"{' ' + arguments.note if arguments.note else ''}\n",
        table.markdown(header, rows),
    ]
    for staleness, runs in list(found.items())[1:]:
        shares = [[100 * each.right / each.answers for each in of] for of in (runs, first)]
        if len(runs) > 1 and len({*shares[0], *shares[1]}) > 1:
            gap, low, high = comparison.welch(*shares)
            notes.append(
                f"\nStaleness {staleness} less {arguments.staleness[0]}, held-out: {gap:+.1f} points, 95 % interval "
                f"over seeds (Welch) [{low:+.1f}, {high:+.1f}]."
            )
    return "\n".join(notes)


def mean_seconds(outcome: Outcome, phase: str = "step") -> float:
    """Of a run's steps."""
    return statistics.mean(outcome.seconds[phase])


if __name__ == "__main__":
    main()
