"""A simulation: the time of a step on 1 to 1024 devices, from costs that were measured on one.

    python benchmarks/scaling.py                                   # with benchmarks/peers/scaling_costs.json
    python benchmarks/scaling.py --measure                         # costs of this machine: five short runs
    python benchmarks/scaling.py --costs mine.json --prompts 512 --median-tokens 800 --between-bytes-per-s 50e9
    python benchmarks/scaling.py --from-runs runs/a runs/b --check runs/c

Three ways to use N devices: `colocate` (each generates, then learns), `disaggregated` (some generate, then the others
learn), `ahead` (the same with `batch.staleness: 1`: both at once). Of the latter two the best split is shown. Nothing
here was measured on more than one device: see the assumptions that are printed with the table.
"""

import argparse
import functools
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from peers import table
from peers.recipe_runs import ROOT
from peers.scaling_costs import Observed, fit, lognormal_workload, read_costs, read_steps, write_costs
from peers.scaling_model import MODES, Costs, Mode, Network, Step, Workload, best_step, draw, mean_step, step
from peers.scaling_tables import ByDevices, plot, step_table, where_each_wins

from rlhf.config.grpo import GRPOConfig
from rlhf.config.loading import build_config
from rlhf.config.sources import parse_command_line, read_yaml
from rlhf.trainers.run import run as run_recipe
from rlhf.training import recorder
from rlhf.training.run_folder import RunFolder
from rlhf.training.timing import PhaseTimer

CONFIG = ROOT / "configs" / "grpo" / "demo_arithmetic.yaml"
COSTS = Path(__file__).parent / "peers" / "scaling_costs.json"
FIT_SIZES = ((2, 4, 16), (8, 4, 16), (4, 4, 32), (4, 8, 24))
"""(prompts, samples, longest completion) of the runs that costs are fitted to: rows, lengths and prompts vary."""
CHECK_SIZE = (8, 8, 24)
"""The demo's, larger than all of them: predicted, and not fitted to."""
DEVICES = tuple(2**exponent for exponent in range(11))
PHASES = ("generate", "learn", "sync", "total")
ASSUMPTIONS = """Assumptions:
- Every device is as the one that was measured, whatever the number of its neighbours, and holds the whole model (DDP;
  shards would gather weights layer by layer).
- A decoding step costs a fixed part and one for each row; attention over longer texts costs nothing more. Lengths are
  lognormal and independent, those of a prompt no more alike than others.
- Prompts are dealt to engines in turn, and no engine takes over what another has left: the longest queue decides.
- Gradients are reduced in a ring after the backward pass, with nothing hidden behind it and without latencies.
- The main rank sends the weights to each server on another machine, one copy after the other through one link
  (`--tree`: from server to server, which the trainer does not do). Nothing hides it.
- Ranks must divide the prompts of a step. Grading is the ranks' work, in step with generation.
- The batch is the same for all N. Evaluations, checkpoints and failures are left out."""


def main() -> None:
    """Costs, the check against runs, tables, plot."""
    arguments = parse_arguments()
    costs, origin, checked = find_costs(arguments)
    network = Network(
        arguments.per_machine, arguments.inside_bytes_per_s, arguments.between_bytes_per_s, arguments.tree
    )
    found = {
        faster: simulate(arguments.devices, arguments.workload, costs.faster(faster), network, arguments)
        for faster in arguments.faster
    }
    report = lay_out(arguments, costs, origin, checked, network, found)
    print(report)
    if arguments.out is not None:
        arguments.out.write_text(f"{report}\n\n{table.machine_text(table.machine())}\n", encoding="utf-8")
        plot(found, arguments.out.with_suffix(".png"))


def parse_arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; `workload` is made of its options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, default, network = parser.add_argument, Workload(), Network()
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--costs", type=Path, default=COSTS, help="JSON, as --measure writes it")
    source.add_argument("--measure", action="store_true", help=f"run {CONFIG.name} at several sizes, keep {COSTS.name}")
    source.add_argument("--from-runs", type=Path, nargs="+", metavar="RUN", help="fit costs to these runs of one rank")
    add("--check", type=Path, metavar="RUN", help="compare the prediction with a run that costs were not fitted to")
    add("--steps", type=int, default=7, help="of each run of --measure; the first is not counted")
    add("--engine", choices=["vllm", "transformers"], default="vllm", help="of --measure")
    add("--clock", choices=["wall", "cpu"], default="wall", help="of --measure; cpu: on a machine that is shared")
    add("--folder", type=Path, default=ROOT / "runs" / "scaling", help="where --measure keeps its runs")
    add("--devices", type=int, nargs="+", default=list(DEVICES))
    add("--faster", type=float, nargs="+", default=[1.0], help="also devices so many times as fast, network unchanged")
    for name, value in vars(default).items():
        add(f"--{name.replace('_', '-')}", type=type(value), default=value, help="(default: %(default)s)")
    add("--per-machine", type=int, default=network.per_machine, help="devices (default: %(default)s)")
    add("--inside-bytes-per-s", type=float, default=network.inside_bytes_per_s, help="(default: %(default).3g)")
    add("--between-bytes-per-s", type=float, default=network.between_bytes_per_s, help="(default: %(default).3g)")
    add("--tree", action="store_true", help="weights go from server to server; what the trainer does not do")
    add("--draws", type=int, default=8, help="steps whose mean is shown")
    add("--seed", type=int, default=0)
    add("--out", type=Path, help="write the tables to this markdown file, and a plot beside it")
    parsed = parser.parse_args(given)
    parsed.workload = Workload(**{name: getattr(parsed, name) for name in vars(default)})
    if min(parsed.devices) < 1 or parsed.draws < 1 or parsed.steps < 2 or min(parsed.faster) <= 0:
        parser.error("--devices and --draws are at least 1, --steps at least 2, --faster above 0")
    return parsed


def find_costs(arguments: argparse.Namespace) -> tuple[Costs, str, str]:
    """(costs, where they come from, the check as text). Runs what --measure asks for."""
    check = None
    if arguments.measure:
        runs = [measuring_run(arguments, size) for size in FIT_SIZES]
        check = measuring_run(arguments, CHECK_SIZE)
    else:
        runs = [RunFolder(path) for path in arguments.from_runs or ()]
    if arguments.check is not None:
        check = RunFolder(arguments.check)
    if runs:
        observed = [each for run in runs for each in observe(run)]
        model = run_config(runs[0]).model
        costs = fit(observed, *model_bytes(model.path, model.dtype))
        clock = "CPU seconds of one process" if arguments.measure and arguments.clock == "cpu" else "wall seconds"
        origin = (
            f"{clock}, {torch.get_num_threads()} thread(s), {model.path} in {model.dtype}, "
            f"{run_config(runs[0]).engine.type} engine, fitted to {len(observed)} steps of {len(runs)} runs of "
            f"GRPO; {table.machine_text(table.machine())}"
        )
        if arguments.measure:
            write_costs(costs, COSTS, origin)
    else:
        costs, origin = read_costs(arguments.costs)
    return costs, origin, "" if check is None else compare(check, costs, arguments)


def measuring_run(arguments: argparse.Namespace, size: tuple[int, int, int]) -> RunFolder:
    """The demo with so many prompts, samples and tokens; one that is finished is read."""
    prompts, samples, tokens = size
    name = f"{prompts}x{samples}x{tokens}-{arguments.engine}-{arguments.clock}"
    settings = {
        "run.folder": arguments.folder, "run.name": name, "engine.type": arguments.engine,
        "batch.steps": arguments.steps, "batch.prompts_per_step": prompts, "sampling.samples_per_prompt": samples,
        "sampling.max_tokens": tokens, "evaluation.prompts": 0, "checkpoint.every": 0, "checkpoint.export": "false",
    }  # fmt: skip
    folder = RunFolder(arguments.folder / name)
    if (folder.path / "report.html").exists():
        return folder
    print(f"[scaling] {name}", file=sys.stderr, flush=True)
    flags = [f"--{key}={value}" for key, value in settings.items()]
    config = build_config(GRPOConfig, parse_command_line(["--config", str(CONFIG), *flags]))
    # with one thread CPU seconds are about what the wall clock would say on an idle machine
    clock = time.process_time if arguments.clock == "cpu" else time.perf_counter
    with mock.patch.object(recorder, "PhaseTimer", functools.partial(PhaseTimer, clock=clock)):
        run_recipe(config)
    # the optimizer's state is the most of a disk
    shutil.rmtree(folder.checkpoints, ignore_errors=True)
    return folder


def run_config(run: RunFolder) -> GRPOConfig:
    """As the run resolved it."""
    return GRPOConfig.model_validate(read_yaml(str(run.path / "config.yaml"))[0])


def observe(run: RunFolder) -> list[Observed]:
    """The run's steps, with the mean length of its prompts."""
    from rlhf.data.sources import load_prompts
    from rlhf.models.loading import load_tokenizer

    config = run_config(run)
    source = load_prompts(config.data, load_tokenizer(config.model), seed=config.run.seed)
    first = [len(source[place].token_ids) for place in range(min(64, len(source)))]
    # the transformers engine calls its slots rows
    slots = getattr(config.engine, "max_num_seqs", None) or getattr(config.engine, "max_rows", 128)
    return read_steps(run, float(np.mean(first)), slots)


def model_bytes(path: str, dtype: str) -> tuple[int, int]:
    """Of the weights, and of all gradients (in the policy's precision)."""
    from rlhf.config.model_shapes import find_shape
    from rlhf.models.embedded import resolve_model_path

    parameters = find_shape(resolve_model_path(path)).parameters
    each = 2 if dtype == "bfloat16" else 4
    return parameters * each, parameters * each


def simulate(
    devices: Sequence[int], workload: Workload, costs: Costs, network: Network, arguments: argparse.Namespace
) -> ByDevices:
    """The best step by number of devices and mode, of the modes that it allows."""
    # one more, as `ahead` generates the batch after the one that is learned
    batches = [draw(workload, arguments.seed, number) for number in range(arguments.draws + 1)]
    found: dict[int, dict[Mode, Step]] = {}
    for count in devices:
        best = {mode: best_step(mode, count, batches, workload, costs, network) for mode in MODES}
        found[count] = {mode: each for mode, each in best.items() if each is not None}
    return found


def compare(run: RunFolder, costs: Costs, arguments: argparse.Namespace) -> str:
    """Predicted over measured, by phase: with the run's own lengths, and with lengths drawn like them."""
    steps, config = observe(run), run_config(run)
    lone = Network(per_machine=1)
    own = []
    for each in steps:
        prompts, samples = each.batch.lengths.shape
        workload = Workload(prompts, samples, each.prompt_tokens, slots=each.slots)
        own.append(step("colocate", 1, 0, each.batch, each.batch, workload, costs, lone))
    workload = lognormal_workload(steps, config.sampling.max_tokens)
    drawn = mean_step(
        "colocate", 1, 0, [draw(workload, arguments.seed, n) for n in range(65)], workload, costs, lone
    )  # fmt: skip
    rows = []
    for phase in PHASES:
        # grading and recording are in the prediction's generation, as they are the sampling side's work
        measured = float(np.mean([getattr(s, phase) + (s.rest if phase == "generate" else 0.0) for s in steps]))
        predicted = float(np.mean([getattr(s, phase) for s in own]))
        again = getattr(drawn, phase)
        rows.append([
            phase, f"{measured:.3f}", f"{predicted:.3f}", f"{predicted / measured:.2f}", f"{again:.3f}",
            f"{again / measured:.2f}",
        ])  # fmt: skip
    header = ["one device, seconds", "measured", "predicted", "ratio", "with drawn lengths", "ratio"]
    prompts, samples = steps[0].batch.lengths.shape
    return (
        f"Check against a run that the costs were not fitted to: {prompts} x {samples} completions of at most "
        f"{config.sampling.max_tokens} tokens, mean of {len(steps)} steps.\n\n{table.markdown(header, rows)}"
    )


def lay_out(
    arguments: argparse.Namespace, costs: Costs, origin: str, checked: str, network: Network,
    found: Mapping[float, ByDevices],
) -> str:  # fmt: skip
    """The report as markdown."""
    workload = arguments.workload
    way = "server to server" if network.tree else "the main rank to each server"
    parts = [
        "# A simulation of steps on many devices",
        "**Computed, not measured**: nothing was run on more than one device. Costs of one device: " + origin,
        table.markdown(["cost", "value"], [[name, f"{value:.4g}"] for name, value in vars(costs).items()]),
        *([checked] if checked else []),
        f"A step: {workload.prompts} prompts of {workload.prompt_tokens:g} tokens x {workload.samples} samples, "
        f"lengths lognormal with median {workload.median_tokens:g} and sigma {workload.sigma:g}, at most "
        f"{workload.max_tokens}; {workload.slots} slots an engine, {workload.minibatches} optimizer step(s), "
        f"{workload.signal_share:.0%} of the groups learned from. Network, assumed: {network.per_machine} devices "
        f"a machine, {network.inside_bytes_per_s / 1e9:g} GB/s inside, "
        f"{network.between_bytes_per_s / 1e9:g} GB/s between; weights from {way}. Mean of {arguments.draws} "
        f"draws, seed {arguments.seed}.",
        ASSUMPTIONS,
    ]
    for faster, by_devices in found.items():
        title = "The device as measured" if faster == 1 else f"What if devices were {faster:g} times as fast"
        parts += [f"## {title}", step_table(by_devices), where_each_wins(by_devices)]
    return "\n\n".join(parts)


if __name__ == "__main__":
    main()
