"""Do our optimizers learn as well as AdamW? SmolLM2 learns sums, each optimizer at its best of a few learning rates.

    python benchmarks/optimizer_learning.py                  # supervised, 3 seeds of 300 steps: an hour on two cores
    python benchmarks/optimizer_learning.py --task grpo      # the demo of GRPO, 3 seeds
    python benchmarks/optimizer_learning.py --quick          # does it run? its figures mean nothing

Rates are chosen by short runs with a seed of their own, by what they reach on held-out sums. Runs are kept under
--folder and not repeated; `--workers 2` makes two at a time with one thread each. The table says how far each optimizer
ends from AdamW, with a 95 % interval over seeds (Welch), and what training takes in bytes a parameter: float32 weights,
gradients, state.
"""

import argparse
import functools
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from peers import comparison, table
from peers.learning_runs import Outcome, grpo_outcome, sft_outcome
from peers.recipe_runs import ROOT

CONTENDERS: dict[str, dict[str, dict[str, Any]]] = {
    "sft": {
        "adamw": {},
        "adabelief": {"preset": "sft"},
        "frugal": {"preset": "sft", "selector": "auto", "update_gap": 75, "state_free_lr_scale": 0.25},
        "auon": {"preset": "sft"},
    },
    "grpo": {"adamw": {}, "adabelief": {}, "frugal": {"update_gap": 3}, "auon": {}},
}
"""Settings beside type and rate. A choice of FRUGAL's lasts a quarter of a run: every weight has its turn."""
RATES = {"sft": (1e-5, 3e-5, 1e-4, 3e-4, 1e-3), "grpo": (1e-5, 3e-5, 1e-4)}
STEPS = {"sft": 300, "grpo": 12}
TUNING_STEPS = {"sft": 60, "grpo": 8}
TUNING_SEED = 1000


@dataclass(frozen=True)
class Plan:
    """One run to be made."""

    task: str
    optimizer: dict[str, Any]
    seed: int
    steps: int
    model: str
    folder: Path
    dtype: str


def main() -> None:
    """Tune, run, print the table, and where asked write it with its curves."""
    arguments = parse_arguments()
    contenders = {name: CONTENDERS[arguments.task][name] for name in arguments.optimizers}
    make = functools.partial(Plan, arguments.task, model=arguments.model, folder=arguments.folder,
                             dtype=arguments.dtype)  # fmt: skip
    with ProcessPoolExecutor(arguments.workers, initializer=_use_threads, initargs=(arguments.workers,)) as pool:
        tuning = {
            name: [
                make({"type": name, "lr": lr, **settings}, seed=TUNING_SEED, steps=arguments.tuning_steps)
                for lr in arguments.rates
            ]
            for name, settings in contenders.items()
        }
        tuned = _run_all(pool.map, tuning)
        best = {name: min(outcomes, key=lambda each: each.to_minimise).optimizer for name, outcomes in tuned.items()}
        runs = {
            name: [make(optimizer, seed=seed, steps=arguments.steps) for seed in range(arguments.seeds)]
            for name, optimizer in best.items()
        }
        found = _run_all(pool.map, runs)
    report = lay_out(arguments, tuned, found)
    print(report)
    if arguments.out is not None:
        curves = arguments.out.with_suffix(".png")
        lines = {name: [outcome.curve for outcome in outcomes] for name, outcomes in found.items()}
        label = next(iter(found.values()))[0].curve_label
        comparison.draw(lines, label, curves, is_logarithmic=arguments.task == "sft")
        picture = f"![Loss or reward over steps]({curves.name})"
        text = f"{report}\n{picture}\n\n{table.machine_text(table.machine())}\n"
        arguments.out.write_text(text, encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=["sft", "grpo"], default="sft")
    parser.add_argument("--optimizers", nargs="+", choices=CONTENDERS["sft"], default=list(CONTENDERS["sft"]))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--tuning-steps", type=int)
    parser.add_argument("--rates", type=float, nargs="+", help="learning rates to choose from, for every optimizer")
    parser.add_argument("--model", default="embedded:smollm2-135m-instruct")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], default="float32",
        help="of GRPO's policy; bfloat16 is twice as fast where the CPU has AMX, with float32 masters",
    )  # fmt: skip
    parser.add_argument("--workers", type=int, default=1, help="runs at a time; threads are shared among them")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "optimizer-learning", help="runs are kept here")
    parser.add_argument("--out", type=Path, help="write the table to this markdown file, its curves beside it")
    parser.add_argument("--quick", action="store_true", help="2 seeds of 3 steps, one rate")
    parsed = parser.parse_args()
    if parsed.quick:
        parsed.seeds, parsed.steps, parsed.tuning_steps, parsed.rates = 2, 3, 1, [1e-4]
    parsed.steps = parsed.steps or STEPS[parsed.task]
    parsed.tuning_steps = parsed.tuning_steps or TUNING_STEPS[parsed.task]
    parsed.rates = parsed.rates or RATES[parsed.task]
    if parsed.seeds < 2:
        parser.error("--seeds must be at least 2: one run has no spread")
    return parsed


def make_run(plan: Plan) -> Outcome:
    """What the run found; said on stderr."""
    outcome_of = sft_outcome if plan.task == "sft" else functools.partial(grpo_outcome, dtype=plan.dtype)
    found = outcome_of(plan.optimizer, plan.seed, plan.steps, plan.model, plan.folder)
    settings = " ".join(f"{value}" for value in plan.optimizer.values())
    print(f"{settings}, seed {plan.seed}, {plan.steps} steps: {found.told}", file=sys.stderr, flush=True)
    return found


def _run_all(run: Callable[..., Any], plans: Mapping[str, Sequence[Plan]]) -> dict[str, list[Outcome]]:
    outcomes = iter(list(run(make_run, [plan for of_name in plans.values() for plan in of_name])))
    return {name: [next(outcomes) for _ in of_name] for name, of_name in plans.items()}


def _use_threads(workers: int) -> None:
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))


def lay_out(
    arguments: argparse.Namespace, tuned: Mapping[str, Sequence[Outcome]], found: Mapping[str, Sequence[Outcome]]
) -> str:
    """The table and how to read it, as markdown."""
    of = next(iter(found.values()))[0]
    header = ["optimizer", "lr (of)", f"{of.measure}, mean (sd)", "less AdamW's [95 %]", "right, %", "B/parameter",
              "s/step", "verdict"]  # fmt: skip
    lines = []
    for name, outcomes in found.items():
        values = [outcome.to_minimise for outcome in outcomes]
        rates = ", ".join(f"{outcome.optimizer['lr']:g}: {outcome.to_minimise:.3f}" for outcome in tuned[name])
        difference, verdict = "", ""
        if name != "adamw" and "adamw" in found:
            gap, low, high = comparison.welch(values, [outcome.to_minimise for outcome in found["adamw"]])
            difference = f"{gap:+.4f} [{low:+.4f}, {high:+.4f}]"
            verdict = comparison.verdict(low, high)
        lines.append([
            name, f"{outcomes[0].optimizer['lr']:g} ({rates})",
            f"{statistics.mean(values):.4f} ({statistics.stdev(values):.4f})", difference,
            " ".join(f"{100 * outcome.right:.1f}" for outcome in outcomes), f"{outcomes[0].bytes_per_parameter:.2f}",
            f"{statistics.median(outcome.step_seconds for outcome in outcomes):.2f}", verdict,
        ])  # fmt: skip
    title = f"# Learning with each optimizer: {'supervised' if arguments.task == 'sft' else 'GRPO'}"
    about = (
        f"{arguments.model}, {arguments.steps} steps, {arguments.seeds} seeds; {of.about}. Less is better. Learning "
        f"rates were chosen by {arguments.tuning_steps} steps with another seed (what each found is in brackets)."
    )
    if arguments.workers > 1:
        about += f" {arguments.workers} runs at a time: seconds say little."
    return "\n\n".join([title, about, table.markdown(header, lines)]) + "\n"


if __name__ == "__main__":
    main()
