"""The HTML report of a run: one file without external resources, for a person who wants to trust the run or not.

`python -m rlhf.training.report RUN_FOLDER` writes it again from what the folder holds.
"""

import heapq
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from rlhf.training.progress import dialogue_text, duration
from rlhf.training.report.critic_checks import critic_checks
from rlhf.training.report.evaluation_figures import by_figure, change_between, main_figure
from rlhf.training.report.page import Check, write_page
from rlhf.training.report.plots import draw_all, series, sparkline
from rlhf.training.run_folder import RunFolder, number
from rlhf.training.statistics import format_share, intervals_overlap

Record = Mapping[str, Any]

SAMPLES_PER_GROUP = 6

KEY_SETTINGS = {
    "checkpoint": "model.path", "compute precision": "model.dtype", "LoRA": "model.lora", "prompts": "data.type",
    "dataset": "data.path", "level": "data.level", "algorithm": "algorithm.type", "preset": "algorithm.preset",
    "advantage": "algorithm.advantage", "loss": "algorithm.loss", "KL coefficient": "algorithm.kl.coefficient",
    "mode": "algorithm.mode", "beta": "algorithm.beta", "alpha": "algorithm.alpha", "calibration":
    "algorithm.calibration",
    "optimizer": "optimizer.type", "peak learning rate": "optimizer.lr", "schedule": "schedule.type",
    "steps": "batch.steps", "prompts per step": "batch.prompts_per_step", "staleness": "batch.staleness",
    "completions per prompt": "sampling.samples_per_prompt", "longest completion": "sampling.max_tokens",
    "environment": "environment.type", "turns of a session": "environment.turns",
    "temperature": "sampling.temperature", "engine": "engine.type", "seed": "run.seed",
}


def write_report(folder: RunFolder | str | Path) -> Path:
    """Write `report.html` from the folder's files, whatever part of them exists, and return its path.

    Raises FileNotFoundError when the folder holds no run, RunFolderError when the report cannot be written.
    """
    run = folder if isinstance(folder, RunFolder) else RunFolder(folder)
    if not run.used:
        raise FileNotFoundError(f"{run.path} holds no run: expected config.yaml or metrics.jsonl in it")
    return write_page(run.report, Path(__file__).with_name("run_report.html.j2"), collect(run))


def collect(run: RunFolder) -> dict[str, Any]:
    """Everything the template shows; model text stays plain text here and is escaped by the template."""
    metrics, evaluations = run.read_metrics(), run.read_evaluations()
    config_text = run.config.read_text(encoding="utf-8") if run.config.exists() else ""
    config = yaml.safe_load(config_text) or {}
    drawings = draw_all(metrics, evaluations)
    sections = dict.fromkeys(drawing.section for drawing in drawings)
    return {
        "title": lookup(config, "run.name") or run.path.name,
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "subtitle": _subtitle(config),
        "headline": headline(evaluations),
        "reward": _first_and_last(metrics, "reward/mean"),
        "tiles": _tiles(metrics, config),
        "checks": checks(metrics, config),
        "sections": {s: [d for d in drawings if d.section == s] for s in sections},
        "evaluations": by_figure(evaluations),
        "figure": main_figure,
        "tables": json.loads(run.tables.read_text(encoding="utf-8")) if run.tables.exists() else [],
        "samples": pick_samples(run.read_samples()),
        "settings": _settings(config),
        "config_text": config_text,
        "environment": json.loads(run.environment.read_text(encoding="utf-8")) if run.environment.exists() else {},
        "memory": json.loads(run.memory_plan.read_text(encoding="utf-8")) if run.memory_plan.exists() else None,
        "metric_rows": _metric_rows(metrics),
        "prompt_text": prompt_text,
        "completion_text": completion_text,
    }


def headline(evaluations: Sequence[Record]) -> dict[str, Any] | None:
    """First and last line of the first evaluation set, and what their intervals allow to say."""
    if not evaluations:
        return None
    records = sorted((r for r in evaluations if r["name"] == evaluations[0]["name"]), key=lambda r: r["step"])
    before, after = records[0], records[-1]
    result: dict[str, Any] = {"name": before["name"], "before": before, "after": None}
    if len(records) > 1:
        # a benchmark's change is paired by question (eval/in_training.py); held-out shares are set side by side
        paired = after.get("change")
        change = change_between(before, after)
        low, high = (paired["low"], paired["high"]) if paired else (change.low, change.high)
        overlap = intervals_overlap((before["low"], before["high"]), (after["low"], after["high"]))
        result |= {"after": after, "change": change.value, "change_low": low, "change_high": high,
                   "overlap": overlap}
    return result


def checks(metrics: Sequence[Record], config: Mapping[str, Any]) -> list[Check]:
    """What a careful reader would ask of the run, answered from its metrics; failed checks first."""
    if not metrics:
        return [Check(False, "no step was recorded, so there is nothing to check")]
    found = [_check_finite(metrics), _check_steps(metrics)]
    if values := _values(metrics, "guards/skipped_updates"):
        skipped = sum(values)
        found.append(Check(skipped == 0, f"optimizer steps skipped for a non-finite loss or gradient: {skipped:g}"))
    current = [record for record in metrics if not record.get("staleness/max")]
    if values := _values(current, "policy/engine_ratio_mean"):
        gap = max(abs(v - 1) for v in values)
        tolerance = lookup(config, "guards.ratio_tolerance") or 0.1
        where = "at every step" if len(current) == len(metrics) else "where samples were of the same weights"
        text = f"engine and learner: mean ratio within {gap:.2g} of 1 {where} (the run stops above {tolerance:g})"
        found.append(Check(gap <= tolerance, text))
    if values := _values(metrics, "grading/ungradable_share"):
        mean = format_share(sum(values) / len(values))
        text = f"ungradable completions: {mean} on average, {format_share(max(values))} in the worst step"
        found.append(Check(max(values) <= 0.1, text))
    if values := _values(metrics, "grading/timeouts"):
        count = sum(values)
        found.append(Check(count == 0, f"grader time-outs (counted as ungradable, never as wrong): {count:g}"))
    if values := _values(metrics, "tokens/truncated_share"):
        # a session is cut after its last turn, as it was told to be
        of_turns = bool(_values(metrics, "dialogue/turns_mean"))
        what = "sessions cut after their last turn" if of_turns else "completions cut off at the token limit"
        text = f"{what}: {format_share(values[-1])} in the last step"
        found.append(Check(of_turns or values[-1] <= 0.3, text))
    if values := _values(metrics, "groups/zero_signal_share"):
        found.append(Check(values[-1] <= 0.8, f"groups without a signal: {format_share(values[-1])} in the last step"))
    found += critic_checks(metrics)
    return sorted(found, key=lambda check: check.passed)


def pick_samples(samples: Iterable[Record]) -> dict[str, list[Record]]:
    """A few samples worth reading, by why: first and last step, highest and lowest reward, ungradable.

    One pass, holding only what is picked. Among equal rewards the latest samples win: they show what was learned.
    """
    first: list[Record] = []
    last: list[Record] = []
    ungradable: list[Record] = []
    best: list[tuple[float, int, Record]] = []
    worst: list[tuple[float, int, Record]] = []
    for order, sample in enumerate(samples):
        if not first or (sample["step"] == first[0]["step"] and len(first) < SAMPLES_PER_GROUP):
            first.append(sample)
        if last and sample["step"] != last[0]["step"]:
            last = []
        if len(last) < SAMPLES_PER_GROUP:
            last.append(sample)
        if sample["outcome"] == "ungradable":
            ungradable = [*ungradable[1 - SAMPLES_PER_GROUP:], sample]
        reward = number(sample["reward"])
        if reward is not None and math.isfinite(reward):
            for heap, key in ((best, reward), (worst, -reward)):
                push = heapq.heappush if len(heap) < SAMPLES_PER_GROUP else heapq.heappushpop
                push(heap, (key, order, sample))
    picked = {"Last step": last, "First step": first, "Highest reward": [s for *_, s in sorted(best, reverse=True)],
              "Lowest reward": [s for *_, s in sorted(worst, reverse=True)], "Ungradable": ungradable[::-1]}
    return {name: group for name, group in picked.items() if group}


def completion_text(sample: Record) -> str:
    """What the model wrote; of a dialogue also the environment's answers, a line a message."""
    return dialogue_text(sample["messages"], sample["turn_rewards"]) if "messages" in sample else sample["completion"]


def prompt_text(prompt: str | Sequence[Record]) -> str:
    """A prompt as one text: a conversation has a line a message, with its role in front."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def lookup(config: Any, dotted: str) -> Any:
    """The value at `section.name`, None where a part is missing."""
    for key in dotted.split("."):
        config = config.get(key) if isinstance(config, Mapping) else None
    return config


def _values(metrics: Sequence[Record], name: str) -> list[float]:
    return [v for v in series(metrics, name)[1].tolist() if math.isfinite(v)]


def _check_finite(metrics: Sequence[Record]) -> Check:
    numbers = ((r["step"], k, v) for r in reversed(metrics) for k, v in r.items() if isinstance(v, float))
    bad = {name: step for step, name, value in numbers if not math.isfinite(value)}
    if not bad:
        return Check(True, "every recorded number is finite")
    return Check(False, "not finite: " + ", ".join(f"{name} (first at step {step})" for name, step in bad.items()))


def _check_steps(metrics: Sequence[Record]) -> Check:
    steps = [record["step"] for record in metrics]
    jumps = [f"{a} to {b}" for a, b in itertools.pairwise(steps) if b != a + 1]
    text = "steps are recorded one after another, none missing, none twice"
    return Check(not jumps, f"steps jump from {', '.join(jumps[:5])}" if jumps else text)


def _first_and_last(metrics: Sequence[Record], name: str) -> dict[str, float] | None:
    """Means over the first and last tenth of the run, how many steps that is, and whether there are several at all."""
    values = _values(metrics, name)
    if not values:
        return None
    count = max(1, len(values) // 10)
    return {"first": sum(values[:count]) / count, "last": sum(values[-count:]) / count, "steps": count,
            "several": len(values) > 1}


def _tiles(metrics: Sequence[Record], config: Mapping[str, Any]) -> list[tuple[str, str]]:
    planned = lookup(config, "batch.steps")
    tiles = [("steps", f"{len(metrics)} of {planned}" if planned else f"{len(metrics)}")]
    reward = _first_and_last(metrics, "reward/mean")
    if reward and reward["several"]:
        which = f"mean of first and last {reward['steps']} steps" if reward["steps"] > 1 else "first and last step"
        tiles.append((f"reward, {which}", f"{reward['first']:.3f} → {reward['last']:.3f}"))
    if seconds := _values(metrics, "time/step"):
        tiles.append(("time in steps", duration(sum(seconds))))
    if speeds := _values(metrics, "speed/tokens_per_second"):
        tiles.append(("tokens per second", f"{sum(speeds) / len(speeds):,.0f}"))
    if peaks := _values(metrics, "memory/peak_bytes"):
        tiles.append(("peak memory", f"{max(peaks) / 2**30:.2f} GiB"))
    return tiles


def _subtitle(config: Mapping[str, Any]) -> str:
    parts = [lookup(config, "algorithm.preset") or lookup(config, "algorithm.type"), lookup(config, "model.path"),
             lookup(config, "data.path") or lookup(config, "data.type")]
    return " · ".join(str(part) for part in parts if part)


def _settings(config: Mapping[str, Any]) -> dict[str, str]:
    values = {label: lookup(config, dotted) for label, dotted in KEY_SETTINGS.items()}
    return {label: json.dumps(v) if isinstance(v, dict) else str(v) for label, v in values.items() if v is not None}


def _metric_rows(metrics: Sequence[Record]) -> list[dict[str, Any]]:
    rows = []
    for name in dict.fromkeys(k for record in metrics for k in record if k != "step"):
        values = series(metrics, name)[1].tolist()
        if finite := [v for v in values if math.isfinite(v)]:
            rows.append({"name": name, "first": values[0], "last": values[-1], "low": min(finite), "high": max(finite),
                         "points": sparkline(values)})
    return rows
