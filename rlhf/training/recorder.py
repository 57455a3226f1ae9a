"""Everything that a step leaves behind: lines in the run's folder, trackers, and what the terminal shows."""

import resource
import sys
from typing import Any

import torch
from accelerate import Accelerator

from rlhf.config.recipe import RecipeConfig
from rlhf.data.types import Sample
from rlhf.training.collectives import gather_lists
from rlhf.training.metrics import MetricAverager, Trackers, rollout_metrics, staleness_metrics
from rlhf.training.progress import ProgressDisplay
from rlhf.training.report.evaluation_figures import main_figure
from rlhf.training.run_folder import RunFolder
from rlhf.training.timing import PhaseTimer


class Recorder:
    """Collective: every rank calls every method; the main process writes."""

    def __init__(
        self,
        config: RecipeConfig,
        folder: RunFolder,
        accelerator: Accelerator,
        progress: ProgressDisplay,
        trackers: Trackers,
    ) -> None:
        self.config, self.folder, self.accelerator = config, folder, accelerator
        self.progress, self.trackers = progress, trackers
        self.timer = PhaseTimer(synchronize_cuda=torch.cuda.is_available())
        self.latest: dict[str, float] = {}
        """The metrics of the last step, with those of an evaluation after it."""
        self.discarded = 0
        """Groups without a signal that were replaced since the last step, on this rank."""

    def count_discarded(self, groups: int) -> None:
        """Groups without a signal that were replaced in this step."""
        self.discarded += groups

    def step(
        self, step: int, samples: list[Sample], update: dict[str, float], *, makes_rollouts: bool = True
    ) -> None:
        """`makes_rollouts`: the samples are completions of this run, of which rewards and lengths are said, and kept;
        a dataset's are in the dataset."""
        averager = MetricAverager()
        if makes_rollouts:
            averager.merge(rollout_metrics([sample for sample in samples if not sample.is_of_reference]))
        averager.add_sum("tokens/completion_total", sum(len(sample.completion_ids) for sample in samples))
        if self.config.batch.staleness:
            averager.merge(staleness_metrics(step, samples))
        averager.add_sum("groups/discarded", self.discarded)
        averager.add_max("memory/peak_bytes", peak_bytes())
        self.discarded = 0
        metrics = averager.reduce() | update | self.timer.metrics()
        metrics["speed/tokens_per_second"] = metrics["tokens/completion_total"] / max(1e-9, metrics["time/step"])
        self.latest = dict(metrics)
        everything = gather_lists(samples)
        if self.accelerator.is_main_process:
            if makes_rollouts:
                self.folder.append_samples(step, everything)
            self.folder.append_metrics(step, metrics)
        self.trackers.log(metrics, step)
        self.progress.step(step, metrics)
        every = self.config.tracking.show_completions_every
        if every and (step == 1 or step % every == 0):
            self.progress.print_completions(everything, self.config.tracking.completions_per_step)

    def evaluation(self, record: dict[str, Any]) -> None:
        """One line of evaluations.jsonl; its figures are metrics `evaluation/<name>/<figure>`."""
        figures = {k: v["value"] for k, v in record.get("figures", {}).items()}
        figures = {main_figure(record).name: main_figure(record).value} | figures
        metrics = {f"evaluation/{record['name']}/{figure}": value for figure, value in figures.items()}
        self.latest |= metrics
        if self.accelerator.is_main_process:
            values = {name: value for name, value in record.items() if name != "step"}
            self.folder.append_evaluation(record["step"], values)
        self.trackers.log(metrics, record["step"])
        self.progress.evaluation(record)


def peak_bytes() -> int:
    """Largest memory of this process so far: on the GPU where there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
