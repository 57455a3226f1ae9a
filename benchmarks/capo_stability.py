"""Does CAPO hold where plain policy gradients collapse? The demo task at an aggressive learning rate, seed by seed.

    python benchmarks/capo_stability.py --quick                  # one seed, GRPO against CAPO
    python benchmarks/capo_stability.py --seeds 3 --json OUT     # the full table

Each run is `recipes/grpo.py` or `recipes/capo.py` on the same prompts with the same seeds and equal numbers of
completions, with an evaluation every few steps. A run has collapsed when its accuracy ends at half its peak or less.
The conservative run is GRPO at a tenth of the learning rate with four times the prompts a step, for the same number of
completions.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent))
from peers.recipe_runs import ROOT, finished_run

CALIBRATE_STEPS = 3


@dataclass(frozen=True)
class Variant:
    """A way to train: recipe and settings over those of its config."""

    name: str
    recipe: str
    preset: str
    curvature: Mapping[str, Any] = field(default_factory=dict)
    is_conservative: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        curvature = {"calibrate_steps": CALIBRATE_STEPS, **self.curvature} if self.recipe == "capo" else {}
        return {"algorithm.preset": self.preset} | {f"algorithm.curvature.{n}": v for n, v in curvature.items()}


VARIANTS = (
    Variant("GRPO", "grpo", "grpo"),
    Variant("Dr.GRPO", "grpo", "dr_grpo"),
    Variant("REINFORCE", "grpo", "reinforce"),
    Variant("GRPO, conservative", "grpo", "grpo", is_conservative=True),
    Variant("CAPO, adam_frozen, sampled", "capo", "capo"),
    Variant("CAPO, adam_frozen, exact", "capo", "capo", {"fisher": "exact"}),
    Variant("CAPO, sgd, sampled", "capo", "capo", {"step_model": "sgd"}),
    Variant("CAPO, published thresholds", "capo", "capo", {"calibrate_steps": 0}),
    Variant("Dr.CAPO", "capo", "dr_capo"),
    Variant("ReinCAPO", "capo", "reincapo"),
)
QUICK = ("GRPO", "CAPO, adam_frozen, sampled")


@dataclass(frozen=True)
class Course:
    """Accuracy over steps of one run, and the share of rejected tokens."""

    variant: str
    seed: int
    steps: list[int]
    accuracy: list[float]
    low: float
    high: float
    reject_share: float
    completions: int

    @property
    def has_collapsed(self) -> bool:
        return self.accuracy[-1] <= 0.5 * max(self.accuracy)


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, two variants")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--level", type=int, default=2, help="level of the generated sums")
    parser.add_argument("--engine", choices=["transformers", "vllm"], default="transformers")
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "runs" / "capo-stability", help="runs are kept and reused here"
    )
    parser.add_argument("--json", type=Path, default=None)
    arguments = parser.parse_args()
    variants = [variant for variant in VARIANTS if not arguments.quick or variant.name in QUICK]
    courses = []
    for seed in range(1 if arguments.quick else arguments.seeds):
        for variant in variants:
            courses.append(run(variant, seed, arguments))
            print(
                f"{variant.name}, seed {seed}: {' '.join(f'{100 * a:.0f}' for a in courses[-1].accuracy)}", flush=True
            )
    Console().print(table(courses))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([asdict(course) for course in courses], indent=1))


def run(variant: Variant, seed: int, arguments: argparse.Namespace) -> Course:
    """One run as its own process; a finished one is read from its folder."""
    prompts, steps, lr = 8, arguments.steps, arguments.lr
    if variant.is_conservative:
        prompts, steps, lr = 4 * prompts, max(1, steps // 4), lr / 10
    slug = "".join(letter if letter.isalnum() else "-" for letter in variant.name.lower())
    name = f"{slug}-lr{arguments.lr:g}-level{arguments.level}-steps{arguments.steps}-seed{seed}"
    settings = {
        "run.seed": seed, "engine.type": arguments.engine, "data.level": arguments.level, "batch.steps": steps,
        "batch.prompts_per_step": prompts, "optimizer.lr": lr, "evaluation.every": max(1, steps // 6),
        "checkpoint.export": "false", **variant.settings,
    }  # fmt: skip
    if arguments.level == 1:
        settings["evaluation.prompts"] = 25
    config = ROOT / "configs" / variant.recipe / "demo_arithmetic.yaml"
    folder = finished_run(variant.recipe, config, arguments.folder, name, settings)
    evaluations, metrics = folder.read_evaluations(), folder.read_metrics()
    rejected = [record["capo/reject_share"] for record in metrics if "capo/reject_share" in record]
    return Course(
        variant.name, seed, [int(e["step"]) for e in evaluations], [float(e["accuracy"]) for e in evaluations],
        float(evaluations[-1]["low"]), float(evaluations[-1]["high"]),
        sum(rejected) / len(rejected) if rejected else 0.0, steps * prompts * 8,
    )  # fmt: skip


def table(courses: list[Course]) -> Table:
    """One row a variant: final and best accuracy, collapses, rejected tokens."""
    title = f"{courses[0].completions:,} completions a run"
    rows = Table("variant", "final accuracy by seed, %", "mean", "best", "collapsed", "rejected", title=title)
    for name in dict.fromkeys(course.variant for course in courses):
        mine = [course for course in courses if course.variant == name]
        finals = [f"{100 * c.accuracy[-1]:.0f} [{100 * c.low:.0f}, {100 * c.high:.0f}]" for c in mine]
        mean = sum(c.accuracy[-1] for c in mine) / len(mine)
        best = sum(max(c.accuracy) for c in mine) / len(mine)
        rejected = sum(c.reject_share for c in mine) / len(mine)
        collapsed = f"{sum(c.has_collapsed for c in mine)} of {len(mine)}"
        rows.add_row(
            name, ", ".join(finals), f"{100 * mean:.1f}", f"{100 * best:.1f}", collapsed, f"{100 * rejected:.2f} %"
        )
    return rows


if __name__ == "__main__":
    main()
