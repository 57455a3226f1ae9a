"""The time of a GRPO step, phase by phase, against TRL's GRPOTrainer: one command, one table.

    python benchmarks/step_time.py --vs trl                      # Batch S, all contestants
    python benchmarks/step_time.py --vs trl --workload task-d    # end to end, until the task is learned
    python benchmarks/step_time.py --vs trl --json               # for machines

Same model, prompts (in the same order: compared by digest, step for step), reward function, objective, number of
completions and steps. Each contestant runs in a process of its own, one after the other, and again in the next round
(A B A B), so that a drift of the machine meets all. Medians leave out the first step of each process. Run it on an idle
machine: the table tells how many cores other processes kept busy meanwhile.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent))
from peers import ours_grpo, table, trl_grpo
from peers.recipe_runs import ENVIRONMENT
from peers.records import RunRecord, Summary, different_prompts, summarise
from peers.workloads import WORKLOADS, Trial, native_precision

ROOT = Path(__file__).resolve().parents[1]
LOG_TAIL = 40
# glibc returns each large block to the kernel and asks for it again unless told otherwise: millions of page faults
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "8589934592",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
}
COMMON_ENVIRONMENT = ENVIRONMENT | {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}


@dataclass(frozen=True)
class Contestant:
    """`peer` has `command`, `read_record` and `VARIANTS`, of which `variant` is one."""

    name: str
    peer: ModuleType
    variant: str
    title: str

    @property
    def is_ours(self) -> bool:
        return self.peer is ours_grpo


CONTESTANTS = {
    contestant.name: contestant
    for contestant in (
        Contestant("trl", trl_grpo, "default", "TRL, transformers"),
        Contestant("trl-malloc", trl_grpo, "malloc", "TRL, transformers, malloc settings"),
        Contestant("ours", ours_grpo, "transformers", "rlhf, transformers"),
        Contestant("trl-vllm", trl_grpo, "vllm", "TRL, vLLM"),
        Contestant("trl-vllm-tuned", trl_grpo, "vllm-tuned", "TRL, vLLM, bf16 weights, no checkpointing, malloc"),
        Contestant("ours-vllm", ours_grpo, "vllm", "rlhf, vLLM"),
    )
}


class ContestantFailed(Exception):
    """A process ended with an error; the message has the end of its output."""


def child_environment(contestant: Contestant, threads: int) -> dict[str, str]:
    """The same for all, but for the allocator's settings: the variant decides, whatever the caller's shell has set."""
    environment = {name: value for name, value in os.environ.items() if name not in MALLOC}
    environment |= COMMON_ENVIRONMENT | {"OMP_NUM_THREADS": str(threads)}
    if contestant.peer.VARIANTS[contestant.variant].tuned_malloc:
        environment |= MALLOC
    return environment


def run_contestant(contestant: Contestant, trial: Trial, threads: int, folder: Path) -> RunRecord:
    """One process from start to end. Raises ContestantFailed."""
    folder.mkdir(parents=True)
    command = contestant.peer.command(trial, contestant.variant, folder)
    log = folder / "output.log"
    busy_before, started = busy_cpu_seconds(), time.perf_counter()
    with log.open("wb") as output, _process(command, child_environment(contestant, threads), output) as process:
        # the kernel's own account of the process and its children: peak resident memory and CPU seconds
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - started
    if process.returncode != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_TAIL:])
        raise ContestantFailed(f"{contestant.name}: exit status {process.returncode} of {' '.join(command)}\n{tail}")
    records, settings = contestant.peer.read_record(folder)
    if len(records) != trial.steps:
        raise ContestantFailed(f"{contestant.name}: its record has {len(records)} steps, not {trial.steps}; see {log}")
    return RunRecord(
        contestant=contestant.name,
        steps=records,
        wall_seconds=wall,
        peak_rss_bytes=usage.ru_maxrss * 1024,
        other_cpus=max(0.0, busy_cpu_seconds() - busy_before - usage.ru_utime - usage.ru_stime) / wall,
        settings=settings,
    )


@contextmanager
def _process(command: list[str], environment: dict[str, str], output: Any) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        yield process
    finally:
        if process.returncode is None:  # interrupted: its workers go with it
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def busy_cpu_seconds() -> float:
    """CPU seconds of all processes of the machine so far."""
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    # guest time is counted in user time already
    return sum(times) - idle - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)


def measure(
    contestants: list[Contestant], trial: Trial, rounds: int, threads: int, folder: Path
) -> list[RunRecord]:
    """All runs in turn, told on stderr as they end."""
    runs = []
    for number in range(1, rounds + 1):
        for contestant in contestants:
            place = folder / f"{trial.workload.name}-{number}-{contestant.name}"
            run = run_contestant(contestant, trial, threads, place)
            runs.append(run)
            later = [step.seconds["total"] for step in run.steps[1:]]
            told = f"round {number}/{rounds}, {contestant.title}: {run.wall_seconds:.0f} s, later steps"
            print(told, *(f"{seconds:.2f}" for seconds in later), file=sys.stderr, flush=True)
    return runs


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vs", choices=["trl"], default="trl", help="whom to measure against")
    parser.add_argument("--workload", choices=WORKLOADS, default="batch-s")
    parser.add_argument(
        "--contestants", nargs="+", choices=CONTESTANTS, metavar="NAME",
        help=f"some of: {' '.join(CONTESTANTS)} (default: all; for task-d: trl ours ours-vllm)",
    )
    parser.add_argument("--rounds", type=int, default=2, help="processes of each contestant")
    parser.add_argument("--steps", type=int, help="steps of each process (default: the workload's)")
    parser.add_argument(
        "--precision", choices=["float32", "bfloat16"], default=native_precision(),
        help="of compute, for all; default here: %(default)s (bfloat16 where the processor has it)",
    )
    parser.add_argument("--threads", type=int, default=len(psutil.Process().cpu_affinity()), help="default: all cores")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--out", type=Path, help="write the table, the machine and the date to this markdown file")
    parser.add_argument("--folder", type=Path, help="keep logs and run folders in this new folder")
    parsed = parser.parse_args(arguments)
    workload = WORKLOADS[parsed.workload]
    steps = workload.steps if parsed.steps is None else parsed.steps
    parsed.trial = Trial(workload, steps, parsed.seed, parsed.precision)
    if steps < 2:
        parser.error("--steps must be at least 2: the first is dropped")
    if parsed.rounds < 1:
        parser.error("--rounds must be at least 1")
    default = ["trl", "ours", "ours-vllm"] if workload.end_to_end else list(CONTESTANTS)
    parsed.contestants = [CONTESTANTS[name] for name in dict.fromkeys(parsed.contestants or default)]
    if parsed.folder is not None and parsed.folder.exists():
        parser.error(f"--folder {parsed.folder} exists: give another one, results are never mixed")
    return parsed


def report(arguments: argparse.Namespace, runs: list[RunRecord], summaries: list[Summary]) -> str:
    """The table with what a reader must know beside it, as markdown."""
    titles = {contestant.name: contestant.title for contestant in arguments.contestants}
    ours = {contestant.name for contestant in arguments.contestants if contestant.is_ours}
    lay_out = table.end_to_end_table if arguments.trial.workload.end_to_end else table.step_table
    parts = [
        table.heading(arguments.trial, arguments.rounds, arguments.threads),
        lay_out(summaries, titles, ours),
        table.settings_table(runs, titles),
        table.notes(summaries, different_prompts(runs)),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory(prefix="step_time-") as temporary:
        folder = arguments.folder.resolve() if arguments.folder else Path(temporary) / "runs"
        try:
            runs = measure(arguments.contestants, arguments.trial, arguments.rounds, arguments.threads, folder)
        except ContestantFailed as error:
            sys.exit(f"step_time: {error}")
    summaries = [
        summarise([run for run in runs if run.contestant == contestant.name]) for contestant in arguments.contestants
    ]
    if arguments.json:
        ours = {contestant.name for contestant in arguments.contestants if contestant.is_ours}
        result = {
            "trial": asdict(arguments.trial),
            "summaries": [asdict(summary) for summary in summaries],
            "times_as_fast": table.speedups(summaries, ours, arguments.trial.workload.end_to_end),
            "different_prompts": different_prompts(runs),
            "runs": [run.to_json() for run in runs],
            "machine": table.machine(),
        }
        print(json.dumps(result, indent=1))
    else:
        print(report(arguments, runs, summaries))
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        text = report(arguments, runs, summaries) + "\n" + table.machine_text(table.machine()) + "\n"
        arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
