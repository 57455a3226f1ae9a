"""Preference optimisation on a real model: VPO against DPO and IPO on a fixed set, and online against DPO and GRPO.

    python recipes/mine_preferences.py --config configs/vpo/mine_arithmetic.yaml              # the pairs to learn from
    python recipes/mine_preferences.py --config configs/vpo/mine_arithmetic.yaml --split held_out \\
        --prompts 200 --run.name held-out-preferences                                         # those to judge by
    python benchmarks/preference_learning.py --task offline
    python benchmarks/preference_learning.py --task online
    python benchmarks/preference_learning.py --task online --quick                            # does it run?

Each run is a recipe on the demo's sums with AdamW at one learning rate, as many steps and completions for each method.
Offline, held-out pairs say how many are ordered right, by how much, and how likely the chosen ones are; online, the
rollouts of the last quarter of the steps say how many prompts have any right answer among eight (pass@8) and how many
of a prompt's answers differ (unique). Runs are kept under --folder and not repeated.
"""

import argparse
import functools
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
from peers.held_out_pairs import judge_pairs
from peers.recipe_runs import ROOT, finished_run

MODEL = "embedded:smollm2-135m-instruct"
METHODS: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "offline": {
        "dpo": ("vpo", {"algorithm.preset": "dpo"}),
        "vpo": ("vpo", {"algorithm.preset": "vpo"}),
        "vpo, strong": ("vpo", {"algorithm.alpha": 5.0, "algorithm.value_reduction": "token_mean"}),
        "ipo": ("vpo", {"algorithm.preset": "ipo"}),
    },
    "online": {
        "grpo": ("grpo", {}),
        "dpo": ("vpo", {"algorithm.preset": "dpo"}),
        "vpo": ("vpo", {"algorithm.preset": "vpo"}),
        "vpo, strong": ("vpo", {"algorithm.alpha": 0.1}),
    },
}
"""By name the recipe and what is changed in the demo's configuration. With its default alpha the value term has a
hundredth of the pairs' gradient; strong, about as much of it."""
CONFIGS = {"offline": "demo_offline", "online": "demo_online"}
STEPS = {"offline": 30, "online": 16}
RATES = {"offline": 1e-5, "online": 3e-5}
BASELINE = "dpo"


@dataclass(frozen=True)
class Outcome:
    """Columns of the table by name, shares of 1 or nats; `curve` of held-out or training accuracy over steps."""

    figures: dict[str, float]
    curve: list[float]


def main() -> None:
    """Run what is missing, print the table, and where asked write it with its curves."""
    arguments = parse_arguments()
    jobs = [(method, seed) for seed in range(arguments.seeds) for method in arguments.methods]
    with ProcessPoolExecutor(arguments.workers, initializer=_use_threads, initargs=(arguments.workers,)) as pool:
        outcomes = list(pool.map(functools.partial(run, arguments), *zip(*jobs, strict=True)))
    found: dict[str, list[Outcome]] = defaultdict(list)
    for (method, _), outcome in zip(jobs, outcomes, strict=True):
        found[method].append(outcome)
    report = lay_out(arguments, found)
    print(report)
    if arguments.out is not None:
        curves = arguments.out.with_suffix(".png")
        label = "pairs ordered right" if arguments.task == "offline" else "mean reward of rollouts"
        comparison.draw({name: [each.curve for each in runs] for name, runs in found.items()}, label, curves)
        text = f"{report}\n![{label} over steps]({curves.name})\n\n{table.machine_text(table.machine())}\n"
        arguments.out.write_text(text, encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=["offline", "online"], default="offline")
    parser.add_argument("--methods", nargs="+", help=f"some of {', '.join(METHODS['offline'] | METHODS['online'])}")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the policy")
    parser.add_argument("--engine", choices=["transformers", "vllm"], default="transformers")
    parser.add_argument("--pairs", type=Path, default=ROOT / "runs" / "arithmetic-preferences" / "preferences.jsonl")
    parser.add_argument(
        "--held-out-pairs", type=Path, default=ROOT / "runs" / "held-out-preferences" / "preferences.jsonl"
    )
    parser.add_argument("--workers", type=int, default=1, help="runs at a time; threads are shared among them")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "preference-learning", help="runs are kept here")
    parser.add_argument("--out", type=Path, help="write the table to this markdown file, its curves beside it")
    parser.add_argument("--quick", action="store_true", help="2 seeds of 2 steps")
    parsed = parser.parse_args()
    if parsed.quick:
        parsed.seeds, parsed.steps = 2, 2
    known = METHODS[parsed.task]
    parsed.methods = parsed.methods or list(known)
    if unknown := set(parsed.methods) - set(known):
        parser.error(f"--methods: {', '.join(unknown)}: --task {parsed.task} has {', '.join(known)}")
    if BASELINE not in parsed.methods:
        parser.error(f"--methods must have {BASELINE}, which the others are compared with")
    parsed.steps = parsed.steps or STEPS[parsed.task]
    parsed.lr = parsed.lr or RATES[parsed.task]
    if parsed.seeds < 2:
        parser.error("--seeds must be at least 2: one run has no spread")
    for name in ("pairs", "held_out_pairs"):
        if parsed.task == "offline" and not getattr(parsed, name).exists():
            parser.error(f"--{name.replace('_', '-')}: there is no {getattr(parsed, name)}; see --help how to make it")
    return parsed


def run(arguments: argparse.Namespace, method: str, seed: int) -> Outcome:
    """One run as its own process, read from its folder where it was made before."""
    recipe, settings = METHODS[arguments.task][method]
    slug = method.replace(", ", "-")
    name = f"{arguments.task}-{slug}-lr{arguments.lr:g}-{arguments.dtype}-steps{arguments.steps}-seed{seed}"
    is_offline = arguments.task == "offline"
    settings = {
        "run.seed": seed, "batch.steps": arguments.steps, "optimizer.lr": arguments.lr, "model.dtype": arguments.dtype,
        "engine.type": arguments.engine, "evaluation.every": 0, "checkpoint.export": is_offline, **settings,
    } | ({"data.path": arguments.pairs} if is_offline else {})  # fmt: skip
    config = "demo_arithmetic" if recipe == "grpo" else CONFIGS[arguments.task]
    folder = finished_run(recipe, ROOT / "configs" / recipe / f"{config}.yaml", arguments.folder, name, settings)
    metrics, right = folder.read_metrics(), float(folder.read_evaluations()[-1]["accuracy"])
    if is_offline:
        judged = judge_pairs(str(folder.model), MODEL, arguments.held_out_pairs, beta=0.1)
        outcome = Outcome({"held-out sums right, %": 100 * right} | judged, [m["rewards/accuracies"] for m in metrics])
    else:
        rollouts = exploration(list(folder.read_samples()), arguments.steps - max(1, arguments.steps // 4))
        outcome = Outcome({"held-out sums right, %": 100 * right} | rollouts, [m["reward/mean"] for m in metrics])
    told = ", ".join(f"{label} {value:.3g}" for label, value in outcome.figures.items())
    print(f"{method}, seed {seed}: {told}", file=sys.stderr, flush=True)
    return outcome


def exploration(samples: Sequence[Mapping[str, Any]], after: int) -> dict[str, float]:
    """Of the rollouts after step `after`: the share of right completions, of prompts with any, of distinct answers."""
    groups: dict[tuple[int, str], list[Mapping[str, Any]]] = defaultdict(list)
    for sample in samples:
        # completions of the reference have negative indices
        if sample["step"] > after and sample["index"] >= 0:
            groups[sample["step"], sample["prompt_id"]].append(sample)
    right = [[sample["outcome"] == "right" for sample in group] for group in groups.values()]
    distinct = [len({sample["extracted"] for sample in group}) / len(group) for group in groups.values()]
    return {
        "rollouts right, %": 100 * statistics.mean(share for group in right for share in group),
        "pass@8, %": 100 * statistics.mean(any(group) for group in right),
        "unique answers, %": 100 * statistics.mean(distinct),
    }


def lay_out(arguments: argparse.Namespace, found: Mapping[str, Sequence[Outcome]]) -> str:
    """The table and how to read it, as markdown."""
    names = list(found[BASELINE][0].figures)
    lines = []
    for method, outcomes in found.items():
        cells = [method]
        for name in names:
            values = [outcome.figures[name] for outcome in outcomes]
            cells.append(f"{statistics.mean(values):.2f} ({statistics.stdev(values):.2f})")
            if method != BASELINE:
                others = [outcome.figures[name] for outcome in found[BASELINE]]
                gap, low, high = comparison.welch(values, others)
                cells[-1] += f" {gap:+.2f} [{low:+.2f}, {high:+.2f}]"
        lines.append(cells)
    about = (
        f"{MODEL}, sums below 50, {arguments.steps} steps at lr {arguments.lr:g}, AdamW, the policy in "
        f"{arguments.dtype}, {arguments.seeds} seeds: mean (sd), and the difference to DPO with its 95 % interval "
        "(Welch)."
    )
    return "\n\n".join([f"# Preference learning, {arguments.task}", about, table.markdown(["", *names], lines)]) + "\n"


def _use_threads(workers: int) -> None:
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))


if __name__ == "__main__":
    main()
