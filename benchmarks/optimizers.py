"""Steps of our optimizers against torch's AdamW, foreach and fused: time, state, scratch, in one table.

    python benchmarks/optimizers.py                                 # SmolLM2-135M's tensors, all rows: half an hour
    python benchmarks/optimizers.py --rows AdaBelief "chunk 0.25"   # rows whose name has one of these
    python benchmarks/optimizers.py --parameters llama-8b-layers    # larger than any cache
    python benchmarks/optimizers.py --quick                         # does it run? its figures mean nothing

Each row is measured in turn with both AdamWs (foreach, fused, row, row, fused, foreach, ...) after warm-up, and its
ratios are medians over the rounds of time over AdamW's time in the same round: a drift of the machine meets all. State
is what stays between steps, beside what the memory plan (`--dry-run`) counts. Scratch is the most that a step
holds beyond that. On a busy machine `--threads 1 --clock cpu` counts this process's CPU time only.
"""

import argparse
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# the seconds of a first step are to tell what compiling costs
os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")

import torch
from torch import nn
from torch.optim import Optimizer

sys.path.insert(0, str(Path(__file__).resolve().parent))
from head import peak_bytes
from peers import table
from peers.optimizer_rows import PARAMETER_SETS, Row, adamw, predicted_bytes, rows, state_bytes_of, verdicts
from step_time import busy_cpu_seconds

WARM_UPS = 3
FEWEST_ROUNDS = 3
RESELECTIONS = 3
UPDATE_GAP = 200
"""Steps between two choices of FRUGAL's state-full part over which the cost of a choice is spread: the paper's."""
GRADIENT_RMS = 1e-3
MIB = 2**20

Step = Callable[[], Any]


def main() -> None:
    """Measure, print, and where asked write."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model = PARAMETER_SETS[arguments.parameters]().to(arguments.device)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) * GRADIENT_RMS
    busy, cpu, wall = busy_cpu_seconds(), time.process_time(), time.perf_counter()
    results = {}
    references = _references(model, arguments.device)
    for row in arguments.chosen:
        results[row.name] = found = measure(row, model, references, arguments)
        told = f"{found['ms']:.1f} ms, x foreach {found['vs_foreach']:.2f}, x fused {found['vs_fused']:.2f}"
        print(f"{row.name}: {told}", file=sys.stderr, flush=True)
    wall = time.perf_counter() - wall
    others = max(0.0, busy_cpu_seconds() - busy - (time.process_time() - cpu)) / wall
    settings = {name: getattr(arguments, name) for name in ("parameters", "device", "threads", "clock", "rounds")}
    settings |= {"tensors": len(list(model.parameters())), "elements": sum(p.numel() for p in model.parameters())}
    settings |= {"others_cores": others, "load": os.getloadavg()[0]}
    report = lay_out(results, settings)
    if arguments.json:
        print(json.dumps({"settings": settings, "results": results, "machine": table.machine()}, indent=1))
    else:
        print(report)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(report + "\n" + table.machine_text(table.machine()) + "\n", encoding="utf-8")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", choices=PARAMETER_SETS, default="smollm2-135m")
    parser.add_argument("--rows", nargs="+", metavar="WORDS", help="rows whose name contains one of these")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--row-seconds", type=float, default=120.0, help="no more rounds after this, but 3")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="of a CPU; a GPU has events")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="a small model, 3 rounds, nothing compiled")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--out", type=Path, help="write the table, the machine and the date to this markdown file")
    parsed = parser.parse_args(arguments)
    if parsed.quick:
        parsed.parameters, parsed.rounds = "smoke", FEWEST_ROUNDS
    if parsed.rounds < FEWEST_ROUNDS:
        parser.error(f"--rounds must be at least {FEWEST_ROUNDS}")
    wanted = parsed.rows or [""]
    parsed.chosen = [
        row for row in rows()
        if any(words in row.name for words in wanted) and not (parsed.quick and "compiled" in row.name)
    ]  # fmt: skip
    if not parsed.chosen:
        parser.error(f"--rows {' '.join(wanted)}: no row has such a name; rows are {', '.join(r.name for r in rows())}")
    return parsed


def measure(row: Row, model: nn.Module, references: dict[str, Step], arguments: argparse.Namespace) -> dict[str, Any]:
    """The figures of one row."""
    clock = _clock(arguments.device, arguments.clock)
    optimizer = row.build(model)
    started = time.perf_counter()
    optimizer.step()
    _wait(arguments.device)
    first = time.perf_counter() - started
    contestants = {**references, "row": optimizer.step}
    for step in [*contestants.values()] * (WARM_UPS - 1):
        step()
    times = in_turn(contestants, clock, arguments.rounds, arguments.row_seconds)
    parameters = sum(p.numel() for p in model.parameters())
    kept, planned = state_bytes_of(optimizer), predicted_bytes(row, model)
    result = {
        "ms": statistics.median(times["row"]) * 1000,
        "ms_min": min(times["row"]) * 1000,
        "rounds": len(times["row"]),
        **{f"vs_{name}": _ratio(times["row"], times[name]) for name in references},
        "first_step_s": first,
        "state_bytes": kept,
        "state_per_parameter": kept / parameters,
        "planned_per_parameter": planned / parameters,
        "plan_error": kept / planned - 1 if planned else 0.0,
        "scratch_mib": scratch_bytes(optimizer.step, arguments.device) / MIB,
        "choice_ms": choice_seconds(optimizer, clock, statistics.median(times["row"])) * 1000,
    }
    del optimizer, contestants
    gc.collect()
    return result | {"choice_share": result["choice_ms"] / UPDATE_GAP / result["ms"]}


def in_turn(
    contestants: dict[str, Step], clock: Callable[[Step], float], rounds: int, budget: float
) -> dict[str, list[float]]:
    """Seconds of each contestant's steps, one after the other, in turning order; fewer rounds beyond the budget."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    started = time.perf_counter()
    for number in range(rounds):
        if number >= FEWEST_ROUNDS and time.perf_counter() - started > budget:
            break
        order = list(contestants.items())
        for name, step in order if number % 2 == 0 else reversed(order):
            times[name].append(clock(step))
    return times


def choice_seconds(optimizer: Optimizer, clock: Callable[[Step], float], usual: float) -> float:
    """What a step in which FRUGAL chooses its state-full part anew takes beyond the usual; 0 for other optimizers."""
    split = [group for group in optimizer.param_groups if group.get("role") == "split" and "update_gap" in group]
    if not any(0 < group["density"] < 1 for group in split):
        return 0.0
    for group in split:
        group["update_gap"] = 1
    return max(0.0, statistics.median(clock(optimizer.step) for _ in range(RESELECTIONS)) - usual)


def scratch_bytes(step: Step, device: str) -> int:
    """Most bytes that a step holds at once beyond what is there before and after."""
    if not device.startswith("cuda"):
        return peak_bytes(step)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _references(model: nn.Module, device: str) -> dict[str, Step]:
    foreach, fused = adamw(model, foreach=True), adamw(model, fused=True)
    if device == "cpu":
        # one set of moments: a large model's would not fit twice. On a GPU their counters are of different kinds
        fused.state = foreach.state
    return {"foreach": foreach.step, "fused": fused.step}


def _clock(device: str, name: str) -> Callable[[Step], float]:
    now = time.perf_counter if name == "wall" else time.process_time

    def on_cpu(step: Step) -> float:
        start = now()
        step()
        return now() - start

    def on_gpu(step: Step) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        step()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000

    return on_gpu if device.startswith("cuda") else on_cpu


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def _ratio(times: list[float], others: list[float]) -> float:
    return statistics.median(mine / other for mine, other in zip(times, others, strict=True))


def lay_out(results: dict[str, dict[str, Any]], settings: dict[str, Any]) -> str:
    """The table with what a reader must know beside it, as markdown."""
    header = ["step", "ms", "x foreach", "x fused", "state B/param", "planned", "off %", "scratch MiB",
              "first step s", "choice ms", "choice %", "rounds"]  # fmt: skip
    lines = [
        [
            name, f"{r['ms']:.1f}", f"{r['vs_foreach']:.2f}", f"{r['vs_fused']:.2f}",
            f"{r['state_per_parameter']:.3f}", f"{r['planned_per_parameter']:.3f}", f"{100 * r['plan_error']:.2f}",
            f"{r['scratch_mib']:.1f}", f"{r['first_step_s']:.1f}", f"{r['choice_ms']:.0f}" if r["choice_ms"] else "",
            f"{100 * r['choice_share']:.2f}" if r["choice_ms"] else "", str(r["rounds"]),
        ]
        for name, r in results.items()
    ]  # fmt: skip
    title = f"# Optimizer steps on {settings['parameters']}"
    about = (
        f"{settings['tensors']} tensors, {settings['elements']:,} elements, float32 parameters and gradients; "
        f"{settings['device']}, {settings['threads']} thread(s), {settings['clock']} time. Other processes kept "
        f"{settings['others_cores']:.1f} cores busy."
    )
    notes = [
        "- `x foreach`, `x fused`: time over that of torch's AdamW in the same round, median over the rounds; less is "
        "faster.",
        "- `planned` is the memory plan of `--dry-run`, `off` what the state exceeds it by; whole tensors "
        "(block_budget) meet it to within one tensor. `scratch` is held during a step only.",
        f"- `choice`: what a step takes longer in which FRUGAL chooses anew, and its share over {UPDATE_GAP} steps. "
        "`first step` has the compiler in it, without a cache.",
        "- `in a run`: as the learner of this project has it, whose guard has looked for NaN by the gradient's norm. "
        "Alone, the optimizer looks itself, which is a pass over the gradient.",
        *(f"- {line}" for line in verdicts(results, settings["parameters"])),
    ]
    return "\n\n".join([title, about, table.markdown(header, lines), "\n".join(notes)]) + "\n"


if __name__ == "__main__":
    main()
