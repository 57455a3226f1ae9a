"""Summaries as markdown tables, which read well in a terminal too."""

import datetime
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from peers.records import PHASES, RunRecord, Summary
from peers.workloads import Trial

GB = 1e9
SHOWN_PHASES = ("total", *(name for name in PHASES if name != "total"))
NOISE_CPUS = 0.1
"""Above this many cores' worth of other processes' work a time is not to be quoted."""


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with columns padded to equal width, the first to the left and the others to the right."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [cells[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))]
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|"
    return "\n".join([line(header), rule, *(line(row) for row in rows)])


def speedups(summaries: Sequence[Summary], ours: Collection[str], end_to_end: bool) -> dict[str, dict[str, float]]:
    """For each of ours, how many times sooner than each peer it is done: with a median step, or with all of them."""

    def seconds(summary: Summary) -> float:
        return summary.steps_seconds if end_to_end else summary.seconds["total"]

    peers = [summary for summary in summaries if summary.contestant not in ours]
    return {
        summary.contestant: {peer.contestant: seconds(peer) / seconds(summary) for peer in peers}
        for summary in summaries
        if summary.contestant in ours
    }


def step_table(summaries: Sequence[Summary], titles: Mapping[str, str], ours: Collection[str]) -> str:
    """Median seconds of a step by phase, tokens, peak memory, and the ratios of ours to each peer."""
    phases = [name for name in SHOWN_PHASES if any(name in summary.seconds for summary in summaries)]
    peers = [summary.contestant for summary in summaries if summary.contestant not in ours]
    ratios = speedups(summaries, ours, end_to_end=False)
    counts = ["tokens/s", "sampled", "trained", "in model", "peak GB"]
    header = ["median s per step", *phases, *counts, *(f"x {name}" for name in peers)]
    rows = [
        [
            titles[summary.contestant],
            *(_seconds(summary.seconds.get(name)) for name in phases),
            f"{summary.tokens_per_second:.0f}",
            f"{summary.sampled_tokens:.0f}",
            _count(summary.trained_tokens),
            _count(summary.model_tokens),
            f"{summary.peak_rss_bytes / GB:.1f}",
            *(_ratio(ratios.get(summary.contestant, {}).get(name)) for name in peers),
        ]
        for summary in summaries
    ]
    return markdown(header, rows)


def end_to_end_table(summaries: Sequence[Summary], titles: Mapping[str, str], ours: Collection[str]) -> str:
    """Seconds of all steps, the reward before and after, peak memory, and the ratios of ours to each peer."""
    peers = [summary.contestant for summary in summaries if summary.contestant not in ours]
    ratios = speedups(summaries, ours, end_to_end=True)
    header = ["end to end", "steps s", "process s", "median step s", "first reward", "final reward", "peak GB",
              *(f"x {name}" for name in peers)]
    rows = [
        [
            titles[summary.contestant],
            f"{summary.steps_seconds:.1f}",
            f"{summary.wall_seconds:.1f}",
            _seconds(summary.seconds["total"]),
            f"{summary.first_reward:.3f}",
            f"{summary.final_reward:.3f}",
            f"{summary.peak_rss_bytes / GB:.1f}",
            *(_ratio(ratios.get(summary.contestant, {}).get(name)) for name in peers),
        ]
        for summary in summaries
    ]
    return markdown(header, rows)


def settings_table(runs: Sequence[RunRecord], titles: Mapping[str, str]) -> str:
    """The settings in which contestants differ, or might be thought to."""
    settings = {run.contestant: run.settings for run in runs}
    names = list(dict.fromkeys(name for values in settings.values() for name in values))
    rows = [
        [titles[contestant], *(str(values.get(name, "")) for name in names)] for contestant, values in settings.items()
    ]
    return markdown(["settings", *(name.replace("_", " ") for name in names)], rows)


def heading(trial: Trial, rounds: int, threads: int) -> str:
    """What was run, in a few lines."""
    workload = trial.workload
    return (
        f"# {workload.title}: {workload.prompts} prompts x {workload.generations} completions of at most "
        f"{workload.max_tokens} tokens\n\nSums of two numbers below {workload.number_below}, SmolLM2-135M-Instruct, "
        f"{trial.precision} compute, learning rate {workload.lr:g}, {rounds} round(s) of {trial.steps} steps in turn, "
        f"{threads} thread(s), seed {trial.seed}."
    )


def notes(summaries: Sequence[Summary], different: Sequence[str]) -> str:
    """How to read the tables, and what speaks against them."""
    lines = [
        "- `x NAME`: how many times as fast as NAME. Medians leave out the first step of each process.",
        "- `update` is old_logp + forward + backward + optimizer (with gradient clipping); `sync` is the push of the "
        "weights to the engine; `other` is the rest of the step.",
        "- `tokens/s` are sampled tokens over `generate`. `trained` are completion tokens in the loss (rlhf leaves out "
        "groups without a signal), `in model` positions forwarded in the update, padding included. Peak memory is the "
        "kernel's (ru_maxrss) for the whole process, engine included.",
        "- TRL's vLLM does not work on CPU without the repairs of benchmarks/peers/trl_vllm_cpu.py. Both sides run "
        "vLLM eagerly, with 1 GiB of cache.",
    ]
    lines.append(
        "- **Different prompts**: " + "; ".join(different) + ". The comparison does not hold."
        if different
        else "- All contestants saw the same prompts in every step (compared by digest)."
    )
    noisy = ", ".join(f"{s.contestant} {s.other_cpus:.2f}" for s in summaries if s.other_cpus > NOISE_CPUS)
    lines.append(
        f"- **The machine was not idle**: cores kept busy by other processes: {noisy}. These times do not count."
        if noisy
        else f"- Other processes kept less than {NOISE_CPUS} cores busy during every run."
    )
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """Versions, hardware and date. Imports torch: call after the runs."""
    from rlhf.training.environment import describe_environment

    return {"date": datetime.date.today().isoformat(), **describe_environment()}


def machine_text(description: Mapping[str, Any]) -> str:
    """`machine()` in a line or two."""
    versions = ", ".join(f"{name} {version}" for name, version in description["packages"].items())
    cpu, memory = description["cpu"], description["memory_bytes"] / 2**30
    git = description["git"] or {}
    commit = f"{git.get('commit', 'unknown')[:12]}{' with local changes' if git.get('dirty') else ''}"
    return (
        f"{description['date']}, {cpu['cores_usable']} cores of {cpu['model']}, {memory:.0f} GiB, "
        f"{', '.join(description['gpus']) or 'no GPU'}, Python {description['python']}, {versions}; commit {commit}."
    )


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _count(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
