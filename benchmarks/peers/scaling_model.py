"""How long a step takes on N devices, from costs of one: the arithmetic of `benchmarks/scaling.py`.

A device is what the costs were measured on. Completions are decoded together in an engine's slots, so an engine is done
when its longest queue of samples is; a step waits for the slowest engine and the slowest rank.
"""

import heapq
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Mode = Literal["colocate", "disaggregated", "ahead"]
MODES: tuple[Mode, ...] = ("colocate", "disaggregated", "ahead")


@dataclass(frozen=True)
class Costs:
    """Of one device, in seconds and bytes."""

    decode_step_s: float
    """One decoding step of an engine, however many rows it has (reading the weights)."""
    decode_row_s: float
    """Each row of a decoding step, which is each completion token."""
    prefill_token_s: float
    """Each token of a prompt, which is computed once for all its samples."""
    learn_step_s: float
    """One optimizer step, however many tokens it has."""
    learn_token_s: float
    """Each token that is forwarded and backwarded."""
    sample_s: float
    """Each sample outside the engine and the update: grading, recording."""
    sync_byte_s: float
    """Each byte of the weights: written out, loaded by an engine, checksums of both compared."""
    weight_bytes: int
    """In the engines' precision."""
    gradient_bytes: int

    def faster(self, times: float) -> "Costs":
        """The same device with all its seconds divided by `times`."""
        seconds = {name: value / times for name, value in vars(self).items() if name.endswith("_s")}
        return Costs(**vars(self) | seconds)


@dataclass(frozen=True)
class Network:
    """Devices are in machines of `per_machine`; the first are the ranks', the last the servers'."""

    per_machine: int = 8
    inside_bytes_per_s: float = 100e9
    """Of each device to its neighbour in a machine."""
    between_bytes_per_s: float = 12.5e9
    """Of each device to one in another machine, and of a whole machine where it sends to many."""
    tree: bool = False
    """Weights go to other machines' servers from server to server, in about log2 of their number of rounds; else the
    main rank sends them to each, as `engine.type: server` does."""

    def reduction_s(self, ranks: int, bytes_: int) -> float:
        """A ring all-reduce: 2 (n - 1) / n of the bytes through the slowest link."""
        slowest = self.inside_bytes_per_s if ranks <= self.per_machine else self.between_bytes_per_s
        return 2 * (ranks - 1) / ranks * bytes_ / slowest

    def push_s(self, ranks: int, servers: int, bytes_: int) -> float:
        """From the main rank, on the first machine, to all servers. Those on its machine read what it wrote, which is
        in the cost of a sync."""
        here = max(0, min(self.per_machine, ranks + servers) - ranks)
        away = servers - here
        rounds = math.ceil(math.log2(away + 1)) if self.tree else away
        return rounds * bytes_ / self.between_bytes_per_s


@dataclass(frozen=True)
class Workload:
    """A step. Lengths are lognormal, rounded up, and cut off at `max_tokens`."""

    prompts: int = 3072
    """Three times a power of two, so that ranks and servers may be 3 to 1 as well."""
    samples: int = 8
    prompt_tokens: float = 128
    median_tokens: float = 256
    sigma: float = 0.8
    """Of the logarithm; 0: all have the median."""
    max_tokens: int = 2048
    signal_share: float = 1.0
    """Groups that are learned from: the others have equal rewards."""
    slots: int = 128
    """Completions that an engine decodes at once."""
    minibatches: int = 1


@dataclass(frozen=True)
class Batch:
    """One drawn step: lengths (prompts, samples), and which groups are learned from (prompts)."""

    lengths: np.ndarray
    has_signal: np.ndarray


@dataclass(frozen=True)
class Step:
    """Seconds of a step by phase. With mode `ahead` the total is less than their sum."""

    mode: Mode
    ranks: int
    servers: int
    generate: float
    learn: float
    sync: float
    total: float


def draw(workload: Workload, seed: int, number: int) -> Batch:
    """Batch `number` of the draws of `seed`; the same for equal arguments."""
    generator = np.random.default_rng([seed, number])
    shape = (workload.prompts, workload.samples)
    lengths = workload.median_tokens * np.exp(workload.sigma * generator.standard_normal(shape))
    lengths = np.clip(np.ceil(lengths), 1, workload.max_tokens).astype(np.int64)
    return Batch(lengths, generator.random(workload.prompts) < workload.signal_share)


def decoding_steps(lengths: Sequence[int], slots: int) -> int:
    """Until all are done, each in a slot of its own, the next taking the first that is free."""
    ends = sorted(lengths[:slots])
    for length in lengths[slots:]:
        heapq.heapreplace(ends, ends[0] + length)
    return max(ends, default=0)


def engine_s(lengths_PS: np.ndarray, workload: Workload, costs: Costs) -> float:
    """Seconds of one engine for some prompts' samples: every decoding step costs a fixed part and one for each row."""
    steps = decoding_steps(lengths_PS.ravel().tolist(), workload.slots)
    prefill = costs.prefill_token_s * workload.prompt_tokens * len(lengths_PS)
    return prefill + costs.decode_step_s * steps + costs.decode_row_s * float(lengths_PS.sum())


def generate_s(batch: Batch, engines: int, workload: Workload, costs: Costs) -> float:
    """Until the slowest engine is done; prompts are dealt in turn, the samples of each stay together."""
    return max(engine_s(batch.lengths[first::engines], workload, costs) for first in range(engines))


def largest_load(work: Sequence[float], ranks: int) -> float:
    """Of groups dealt as `rlhf.training.balance` does: the costliest first, each to the rank with the least so far."""
    loads = [0.0] * ranks
    for cost in sorted(work, reverse=True):
        heapq.heapreplace(loads, loads[0] + cost)
    return max(loads)


def learn_s(batch: Batch, ranks: int, workload: Workload, costs: Costs, network: Network) -> float:
    """Until the slowest rank is done: its tokens, and for each optimizer step its fixed part and the reduction."""
    tokens = largest_load((workload.prompt_tokens + (batch.lengths - 1).sum(1))[batch.has_signal].tolist(), ranks)
    each = costs.learn_step_s + network.reduction_s(ranks, costs.gradient_bytes)
    return workload.minibatches * each + costs.learn_token_s * tokens


def step(
    mode: Mode, ranks: int, servers: int, batch: Batch, ahead: Batch, workload: Workload, costs: Costs, network: Network
) -> Step:
    """Of `batch`; with mode `ahead` while `ahead` is generated. `servers`: 0 where ranks have engines of their own."""
    engines = ranks if mode == "colocate" else servers
    generated = ahead if mode == "ahead" else batch
    outside = costs.sample_s * batch.lengths.size / ranks
    generate = generate_s(generated, engines, workload, costs) + outside
    learn = learn_s(batch, ranks, workload, costs, network)
    sync = costs.sync_byte_s * costs.weight_bytes
    if mode != "colocate":
        sync += network.push_s(ranks, servers, costs.weight_bytes)
    total = (max(generate, learn) if mode == "ahead" else generate + learn) + sync
    return Step(mode, ranks, servers, generate, learn, sync, total)


def splits(devices: int, mode: Mode, workload: Workload) -> Iterator[tuple[int, int]]:
    """(ranks, servers) that use all devices; an optimizer step's prompts must divide over the ranks, as recipes ask."""
    for ranks in [devices] if mode == "colocate" else range(1, devices):
        if workload.prompts % (ranks * workload.minibatches) == 0:
            yield ranks, devices - ranks


def mean_step(
    mode: Mode, ranks: int, servers: int, batches: Sequence[Batch], workload: Workload, costs: Costs, network: Network
) -> Step:
    """Over consecutive batches."""
    steps = [
        step(mode, ranks, 0 if mode == "colocate" else servers, *pair, workload, costs, network)
        for pair in itertools.pairwise(batches)
    ]
    phases = ("generate", "learn", "sync", "total")
    means = (sum(getattr(each, phase) for each in steps) / len(steps) for phase in phases)
    return Step(mode, ranks, steps[0].servers, *means)


def best_step(
    mode: Mode, devices: int, batches: Sequence[Batch], workload: Workload, costs: Costs, network: Network
) -> Step | None:
    """The fastest of all splits; None where there is none (one device has nothing to divide)."""
    found = [mean_step(mode, *split, batches, workload, costs, network) for split in splits(devices, mode, workload)]
    return min(found, key=lambda each: each.total, default=None)
