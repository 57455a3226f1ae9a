"""Does CAPO hold where plain policy gradients collapse? The demo task at an aggressive learning rate, seed by seed.

    python benchmarks/capo_stability.py --quick                    # one seed, GRPO against CAPO
    python benchmarks/capo_stability.py --seeds 3 --out TABLE.md   # the full table, with curves beside it

Each run is `recipes/grpo.py` or `recipes/capo.py` on the same prompts with the same seeds and equal numbers of
completions, with an evaluation every few steps. A run has collapsed when its accuracy ends at half its peak or less.
The conservative run is GRPO at three tenths of the learning rate. Runs are kept under --folder and not repeated.
"""

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from peers import table
from peers.recipe_runs import ROOT, finished_run

CALIBRATE_STEPS, WARMUP_STEPS, EVALUATIONS, HELD_OUT = 5, 10, 5, 100
PROMPTS, SAMPLES = 8, 8
CONSERVATIVE = 0.3
ROW = {"step_model": "adam_row", "calibrate_quantile": 0.95}


@dataclass(frozen=True)
class Variant:
    """A way to train: recipe and settings over those of its config."""

    name: str
    recipe: str
    preset: str
    curvature: Mapping[str, Any] = field(default_factory=dict)
    lr_factor: float = 1.0

    @property
    def settings(self) -> dict[str, Any]:
        curvature = {"calibrate_steps": CALIBRATE_STEPS, **self.curvature} if self.recipe == "capo" else {}
        return {"algorithm.preset": self.preset} | {f"algorithm.curvature.{n}": v for n, v in curvature.items()}


VARIANTS = {
    "grpo": Variant("GRPO", "grpo", "grpo"),
    "dr_grpo": Variant("Dr.GRPO", "grpo", "dr_grpo"),
    "reinforce": Variant("REINFORCE", "grpo", "reinforce"),
    "conservative": Variant("GRPO, conservative", "grpo", "grpo", lr_factor=CONSERVATIVE),
    "capo": Variant("CAPO, adam_row, sampled", "capo", "capo", ROW),
    "capo_exact": Variant("CAPO, adam_row, exact", "capo", "capo", ROW | {"fisher": "exact"}),
    "capo_sgd": Variant("CAPO, sgd, sampled", "capo", "capo", ROW | {"step_model": "sgd"}),
    "capo_frozen": Variant("CAPO, adam_frozen, sampled", "capo", "capo", ROW | {"step_model": "adam_frozen"}),
    "capo_skip": Variant(
        "CAPO, adam_row, skips steps", "capo", "capo",
        ROW | {"max_reject_fraction": 0.1, "on_excess": "skip_step"},
    ),
    "capo_published": Variant("CAPO, published thresholds", "capo", "capo", {"calibrate_steps": 0}),
    "dr_capo": Variant("Dr.CAPO", "capo", "dr_capo", ROW),
    "reincapo": Variant("ReinCAPO", "capo", "reincapo", ROW),
}  # fmt: skip
QUICK = ("grpo", "capo")


@dataclass(frozen=True)
class Course:
    """Accuracy over steps of one run, and the share of rejected tokens."""

    variant: Variant
    seed: int
    steps: list[int]
    accuracy: list[float]
    low: float
    high: float
    reject_share: float | None

    @property
    def has_collapsed(self) -> bool:
        return self.accuracy[-1] <= 0.5 * max(self.accuracy)

    def completions_to(self, accuracy: float) -> int | None:
        """Completions until an evaluation is at that accuracy, or None."""
        reached = [step for step, value in zip(self.steps, self.accuracy, strict=True) if value >= accuracy]
        return reached[0] * PROMPTS * SAMPLES if reached else None


def main() -> None:
    """Run what is missing, print the table, and where asked write it with its curves."""
    arguments = parse_arguments()
    jobs = [(VARIANTS[name], seed) for seed in range(arguments.seeds) for name in arguments.variants]
    with ProcessPoolExecutor(arguments.workers, initializer=_use_threads, initargs=(arguments.workers,)) as pool:
        courses = list(pool.map(partial(run, arguments), *zip(*jobs, strict=True)))
    report = lay_out(courses, arguments)
    print(report)
    if arguments.out is not None:
        curves = arguments.out.with_suffix(".png")
        draw(courses, curves)
        text = f"{report}\n![Held-out accuracy over steps]({curves.name})\n\n{table.machine_text(table.machine())}\n"
        arguments.out.write_text(text, encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, two variants")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--level", type=int, default=2, choices=[2, 3, 4, 5], help="level of the generated sums")
    parser.add_argument("--engine", choices=["transformers", "vllm"], default="transformers")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], default="float32",
        help="of the policy; bfloat16 is twice as fast where the CPU has AMX, with float32 masters",
    )  # fmt: skip
    parser.add_argument("--workers", type=int, default=1, help="runs at a time; threads are shared among them")
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "runs" / "capo-stability", help="runs are kept and reused here"
    )
    parser.add_argument("--out", type=Path, help="write the table to this markdown file, its curves beside it")
    parsed = parser.parse_args()
    if parsed.quick:
        parsed.seeds, parsed.variants = 1, list(QUICK)
    return parsed


def run(arguments: argparse.Namespace, variant: Variant, seed: int) -> Course:
    """One run as its own process; a finished one is read from its folder."""
    slug = "".join(letter if letter.isalnum() else "-" for letter in variant.name.lower())
    name = f"{slug}-lr{arguments.lr:g}-{arguments.dtype}-level{arguments.level}-steps{arguments.steps}-seed{seed}"
    settings = {
        "run.seed": seed, "engine.type": arguments.engine, "model.dtype": arguments.dtype,
        "data.level": arguments.level, "batch.steps": arguments.steps, "batch.prompts_per_step": PROMPTS,
        "sampling.samples_per_prompt": SAMPLES, "optimizer.lr": arguments.lr * variant.lr_factor,
        "schedule.warmup_steps": WARMUP_STEPS, "evaluation.prompts": HELD_OUT,
        "evaluation.every": max(1, arguments.steps // EVALUATIONS), "checkpoint.export": "false", **variant.settings,
    }  # fmt: skip
    config = ROOT / "configs" / variant.recipe / "demo_arithmetic.yaml"
    folder = finished_run(variant.recipe, config, arguments.folder, name, settings)
    evaluations, metrics = folder.read_evaluations(), folder.read_metrics()
    # while thresholds are measured nothing is rejected
    rejected = [record["capo/reject_share"] for record in metrics[CALIBRATE_STEPS:] if "capo/reject_share" in record]
    course = Course(
        variant, seed, [int(e["step"]) for e in evaluations], [float(e["accuracy"]) for e in evaluations],
        float(evaluations[-1]["low"]), float(evaluations[-1]["high"]),
        statistics.mean(rejected) if rejected else None,
    )  # fmt: skip
    told = " ".join(f"{100 * accuracy:.0f}" for accuracy in course.accuracy)
    print(f"{variant.name}, seed {seed}: {told}", file=sys.stderr, flush=True)
    return course


def lay_out(courses: Sequence[Course], arguments: argparse.Namespace) -> str:
    """The table and how to read it, as markdown."""
    goal = _goal(courses)
    header = ["variant", "final accuracy by seed, %", "mean", "best", "collapsed", "rejected, %",
              f"completions to {100 * goal:.0f} %" if goal else "completions to the conservative run's"]  # fmt: skip
    lines = []
    for variant in dict.fromkeys(course.variant.name for course in courses):
        mine = [course for course in courses if course.variant.name == variant]
        shares = [course.reject_share for course in mine if course.reject_share is not None]
        reached = [course.completions_to(goal) for course in mine] if goal else []
        lines.append([
            variant, ", ".join(f"{100 * c.accuracy[-1]:.0f} [{100 * c.low:.0f}, {100 * c.high:.0f}]" for c in mine),
            f"{100 * statistics.mean(c.accuracy[-1] for c in mine):.1f}",
            f"{100 * statistics.mean(max(c.accuracy) for c in mine):.1f}",
            f"{sum(c.has_collapsed for c in mine)} of {len(mine)}",
            f"{100 * statistics.mean(shares):.1f}" if shares else "",
            ", ".join("never" if each is None else f"{each:,}" for each in reached),
        ])  # fmt: skip
    about = (
        f"Sums of level {arguments.level}, {PROMPTS} prompts x {SAMPLES} completions a step, {arguments.steps} steps, "
        f"lr {arguments.lr:g} (conservative {arguments.lr * CONSERVATIVE:g}) after {WARMUP_STEPS} steps of warm-up, "
        f"AdamW, the policy in {arguments.dtype}; {HELD_OUT} held-out sums, intervals 95 %. Best: highest evaluation, "
        "mean over seeds. Collapsed: ends at half its peak or less. Rejected: tokens, after calibration."
    )
    return "\n\n".join(["# CAPO where policy gradients collapse", about, table.markdown(header, lines)]) + "\n"


def _goal(courses: Sequence[Course]) -> float | None:
    """What the conservative runs end with, on average."""
    finals = [course.accuracy[-1] for course in courses if course.variant.lr_factor != 1]
    return statistics.mean(finals) if finals else None


def draw(courses: Sequence[Course], path: Path) -> None:
    """Held-out accuracy over steps: the mean over seeds, and each seed thin; CAPO's variants are dashed."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(11, 5), layout="constrained")
    for index, name in enumerate(dict.fromkeys(course.variant.name for course in courses)):
        mine = [course for course in courses if course.variant.name == name]
        means = [statistics.mean(at) for at in zip(*(course.accuracy for course in mine), strict=True)]
        style = {"color": f"C{index % 10}", "linestyle": "--" if mine[0].variant.recipe == "capo" else "-"}
        axes.plot(mine[0].steps, means, label=name, linewidth=2, **style)
        for course in mine:
            axes.plot(course.steps, course.accuracy, alpha=0.25, linewidth=0.8, **style)
    axes.set(xlabel="step", ylabel="held-out accuracy", ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize="small")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _use_threads(workers: int) -> None:
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))


if __name__ == "__main__":
    main()
