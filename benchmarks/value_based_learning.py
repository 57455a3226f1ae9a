"""Critics on a real model: the optimistic actor-critic, with and without offline solutions, against PPO and GRPO.

    python benchmarks/value_based_learning.py --task demo            # sums below 50
    python benchmarks/value_based_learning.py --task sparse          # products too: the model is right 1 time in 60
    python benchmarks/value_based_learning.py --task sessions        # number guessing: LOOP and PPO, reward per turn
    python benchmarks/value_based_learning.py --task demo --quick    # does it run?
    python benchmarks/value_based_learning.py --known results/OTHER.json --out results/NEW.md    # only what is missing

Each run is a recipe on the demo's model with AdamW at one learning rate, and equal completions for each method. Offline
solutions are the gold answers of problems that no run is evaluated on. Runs are kept under --folder and not repeated;
--out keeps their outcomes in a JSON file beside the table, from which --known takes them in another place.
"""

import argparse
import dataclasses
import functools
import json
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from peers import comparison, table
from peers.recipe_runs import ROOT, finished_run

from rlhf.data import arithmetic
from rlhf.training.run_folder import RunFolder
from rlhf.training.statistics import wilson_interval

MODEL = "embedded:smollm2-135m-instruct"
HELD_OUT = 200
OFFLINE_SEED = 90_001
"""Of the offline solutions' problems: drawn from the training part, apart from the runs' seeds."""


@dataclass(frozen=True)
class Task:
    """`level` of the sums, `steps` of 64 completions, and the methods: recipe, configuration, what is changed in it."""

    level: int | None
    steps: int
    methods: Mapping[str, tuple[str, str, dict[str, Any]]]


SUMS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "grpo": ("grpo", "demo_arithmetic", {}),
    "ppo": ("ppo", "demo_arithmetic", {}),
    "nora": ("optimistic_actor_critic", "demo_arithmetic", {}),
    "nora_hybrid": ("optimistic_actor_critic", "demo_arithmetic", {"algorithm.preset": "nora_hybrid"}),
}
TASKS = {
    "demo": Task(2, 14, SUMS),
    "sparse": Task(4, 12, SUMS),
    "sessions": Task(None, 12, {
        "ppo": ("ppo", "demo_number_guessing", {}),
        "loop": ("loop", "demo_number_guessing", {}),
    }),
}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """Columns of the table by name; `curve` of the mean reward of rollouts over steps. `right` of `HELD_OUT`."""

    figures: dict[str, float]
    curve: list[float]
    right: int | None


def main() -> None:
    """Run what is missing, print the table, and where asked write it with its curves."""
    arguments = parse_arguments()
    jobs = [(method, seed) for method in arguments.methods for seed in range(arguments.seeds)]
    known = {job: outcome for job, outcome in read_known(arguments).items() if job in jobs}
    missing = sorted((job for job in jobs if job not in known), key=lambda job: job[1])
    if arguments.finished:
        missing = [job for job in missing if (arguments.folder / run_name(arguments, *job) / "report.html").exists()]
    with ProcessPoolExecutor(arguments.workers, initializer=_use_threads, initargs=(arguments.workers,)) as pool:
        outcomes = list(pool.map(functools.partial(run, arguments), [m for m, _ in missing], [s for _, s in missing]))
    known |= dict(zip(missing, outcomes, strict=True))
    found: dict[str, list[Outcome]] = defaultdict(list)
    for method, seed in jobs:
        if (method, seed) in known:
            found[method].append(known[method, seed])
    report = lay_out(arguments, found)
    print(report)
    if arguments.out is not None:
        curves = arguments.out.with_suffix(".png")
        label = "reward per turn" if arguments.task == "sessions" else "mean reward of rollouts"
        comparison.draw({name: [each.curve for each in runs] for name, runs in found.items()}, label, curves)
        text = f"{report}\n![{label} over steps]({curves.name})\n\n{table.machine_text(table.machine())}\n"
        arguments.out.write_text(text, encoding="utf-8")
        write_known(arguments, known)


def compared(arguments: argparse.Namespace) -> dict[str, Any]:
    """What outcomes must have in common to stand in one table."""
    return {name: getattr(arguments, name) for name in ("task", "steps", "lr", "offline", "engine")}


def write_known(arguments: argparse.Namespace, known: Mapping[tuple[str, int], Outcome]) -> None:
    """All outcomes into a JSON file beside the table; a figure that there is none of is null."""
    rows = []
    for (method, seed), outcome in sorted(known.items()):
        row = dataclasses.asdict(outcome)
        row["figures"] = {name: None if math.isnan(value) else value for name, value in row["figures"].items()}
        rows.append({"method": method, "seed": seed, **row})
    text = json.dumps({**compared(arguments), "outcomes": rows}, indent=1)
    arguments.out.with_suffix(".json").write_text(text + "\n", encoding="utf-8")


def read_known(arguments: argparse.Namespace) -> dict[tuple[str, int], Outcome]:
    """Outcomes by method and seed, of the files that `--known` names. Ends where they are of other settings."""
    found, wanted = {}, compared(arguments)
    for file in arguments.known:
        kept = json.loads(file.read_text(encoding="utf-8"))
        outcomes = kept.pop("outcomes")
        if kept != wanted:
            sys.exit(f"--known {file}: outcomes of {kept}, and this table is of {wanted}: leave the file out")
        for row in outcomes:
            figures = {name: math.nan if value is None else value for name, value in row["figures"].items()}
            found[row["method"], row["seed"]] = Outcome(figures, row["curve"], row["right"])
    return found


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=list(TASKS), default="demo")
    parser.add_argument("--methods", nargs="+", help=f"some of {', '.join(SUMS)}, loop")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--lr", type=float, default=3e-5)
    parser.add_argument("--offline", type=int, default=200, help="offline solutions of nora_hybrid")
    parser.add_argument("--engine", choices=["transformers", "vllm"], default="transformers")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time; threads are shared among them")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "value-based", help="runs are kept here")
    parser.add_argument("--out", type=Path, help="write the table to this markdown file, its curves beside it")
    parser.add_argument("--known", type=Path, nargs="+", default=[], help="JSON files of earlier tables: not run again")
    parser.add_argument("--finished", action="store_true", help="run nothing: a table of the runs that are there")
    parser.add_argument("--quick", action="store_true", help="2 seeds of 3 steps")
    parsed = parser.parse_args()
    task = TASKS[parsed.task]
    if parsed.quick:
        parsed.seeds, parsed.steps = 2, 3
    parsed.methods, parsed.steps = parsed.methods or list(task.methods), parsed.steps or task.steps
    if unknown := set(parsed.methods) - set(task.methods):
        parser.error(f"--methods: {', '.join(unknown)}: --task {parsed.task} has {', '.join(task.methods)}")
    if parsed.seeds < 2:
        parser.error("--seeds must be at least 2: one run has no spread")
    return parsed


def run(arguments: argparse.Namespace, method: str, seed: int) -> Outcome:
    """One run as its own process, read from its folder where it was made before."""
    task = TASKS[arguments.task]
    recipe, config, changes = task.methods[method]
    settings = {
        "run.seed": seed, "batch.steps": arguments.steps, "engine.type": arguments.engine, "model.dtype": "float32",
        "optimizer.lr": arguments.lr, "evaluation.every": 0, "checkpoint.export": "false", "checkpoint.every": 0,
    }  # fmt: skip
    if task.level is not None:
        settings |= {"data.level": task.level, "evaluation.prompts": HELD_OUT}
    if method == "nora_hybrid":
        settings["algorithm.offline.path"] = offline_solutions(arguments.folder, task.level, arguments.offline)
    folder = finished_run(
        recipe, ROOT / "configs" / recipe / f"{config}.yaml", arguments.folder, run_name(arguments, method, seed),
        settings | changes,
    )  # fmt: skip
    outcome = read_outcome(folder, is_session=task.level is None)
    told = ", ".join(f"{label} {value:.3g}" for label, value in outcome.figures.items())
    print(f"{method}, seed {seed}: {told}", file=sys.stderr, flush=True)
    return outcome


def run_name(arguments: argparse.Namespace, method: str, seed: int) -> str:
    """Of the run's folder."""
    suffix = "" if arguments.steps == TASKS[arguments.task].steps else f"-steps{arguments.steps}"
    return f"{arguments.task}-{method}{suffix}-seed{seed}"


def offline_solutions(folder: Path, level: int, count: int) -> Path:
    """A dataset of problems of the training part with their gold answers, each earning 1; written once."""
    file = folder / f"offline-level{level}-{count}.jsonl"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        problems = [arithmetic.training_problem(level, OFFLINE_SEED, index) for index in range(count)]
        rows = [
            {
                "prompt": [{"role": "user", "content": problem.question}],
                "completion": [{"role": "assistant", "content": problem.columns["answer"]}], "reward": 1.0,
            }
            for problem in problems
        ]  # fmt: skip
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def read_outcome(folder: RunFolder, *, is_session: bool) -> Outcome:
    """What a run's metrics and evaluations say, over its last quarter where that is of rollouts."""
    metrics, evaluations = folder.read_metrics(), folder.read_evaluations()
    late = metrics[-max(1, len(metrics) // 4) :]

    def mean(name: str, records: Sequence[Mapping[str, Any]] = metrics) -> float:
        values = [float(record[name]) for record in records if name in record]
        return statistics.mean(values) if values else float("nan")

    figures: dict[str, float] = {}
    right = None
    if is_session:
        figures["held-out reward per turn"] = float(evaluations[-1]["reward_per_turn"])
        figures["reward per turn, late"] = mean("dialogue/reward_per_turn", late)
        figures["turns a session, late"] = mean("dialogue/turns_mean", late)
        curve = [float(record["dialogue/reward_per_turn"]) for record in metrics]
    else:
        right = int(evaluations[-1]["right"])
        figures["held-out right, %"] = 100 * float(evaluations[-1]["accuracy"])
        figures["rollouts right, late, %"] = 100 * mean("reward/mean", late)
        figures["groups without signal, %"] = 100 * mean("groups/zero_signal_share")
        curve = [float(record["reward/mean"]) for record in metrics]
    figures["exchanges"] = sum(float(record.get("switch/exchanged", 0.0)) for record in metrics)
    figures["syncs"] = float(metrics[-1].get("actor/syncs", len(metrics)))
    figures["calibration"] = mean("critic/calibration")
    figures["s a step"] = statistics.median(float(record["time/step"]) for record in metrics)
    return Outcome(figures, curve, right)


def lay_out(arguments: argparse.Namespace, found: Mapping[str, Sequence[Outcome]]) -> str:
    """The table and how to read it, as markdown."""
    baseline = next(iter(found))
    names = list(found[baseline][0].figures)
    lines = []
    for method, outcomes in found.items():
        cells = [f"{method} ({len(outcomes)})"]
        for place, name in enumerate(names):
            values = [outcome.figures[name] for outcome in outcomes]
            if math.isnan(values[0]):
                cells.append("")
                continue
            cells.append(f"{statistics.mean(values):.2f}")
            cells[-1] += f" ({statistics.stdev(values):.2f})" if len(values) > 1 else ""
            if place == 0 and outcomes[0].right is not None:
                low, high = wilson_interval(sum(o.right for o in outcomes), HELD_OUT * len(outcomes))
                cells[-1] += f" [{100 * low:.1f}, {100 * high:.1f}]"
            if place == 0 and method != baseline and min(len(values), len(found[baseline])) > 1:
                others = [outcome.figures[name] for outcome in found[baseline]]
                gap, low, high = comparison.welch(values, others)
                cells[-1] += f"; {gap:+.2f} [{low:+.2f}, {high:+.2f}]"
        lines.append(cells)
    about = (
        f"{MODEL}, {arguments.steps} steps at lr {arguments.lr:g}, AdamW, float32; by method (seeds) the mean (sd over "
        f"seeds) [95 % of all held-out answers, Wilson]; difference to {baseline} with its 95 % interval (Welch). "
        "Late: the last quarter of the steps. Calibration: mean distance of the returns of unseen episodes from the "
        "members' mean value, in their standard deviations. Seconds: of the median step."
    )
    title = f"# Value-based learning, {arguments.task}"
    return "\n\n".join([title, about, table.markdown(["", *names], lines)]) + "\n"


def _use_threads(workers: int) -> None:
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))


if __name__ == "__main__":
    main()
