"""Runs elementwise rules over many tensors with bounded scratch: in buckets of lists (foreach), compiled, or one at a
time."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rlhf.optim.buffers import BLOCK, Buffer, Plain
from rlhf.optim.compiled_buffers import read_buffer, read_compiled, write_buffer, write_compiled
from rlhf.optim.kernels import Operands, can_compile, update_compiled
from rlhf.optim.rules import Numbers, Rule

Implementation = Literal["auto", "foreach", "compiled", "loop"]

BUCKET_ONE_THREAD, BUCKET_CPU, BUCKET_GPU = 1 << 19, 1 << 22, 1 << 24
"""Elements updated together. One thread of a CPU finds a bucket's operands in the cache at the next operation; several
are woken for each operation, which costs more than the cache saves. On a GPU 64 MiB of scratch."""
WORTH_COMPILING = 20_000_000
"""Compiling takes seconds to a minute: `auto` compiles from this many elements on."""
WORTH_A_KERNEL = 1 << 14
"""Calling a compiled kernel costs about 50 microseconds: smaller tensors are updated together, as lists."""
KERNEL_BUCKET_CPU = 1 << 20
"""Elements that kernels take together on a CPU where they are copied: there are few passes over them, and each call
costs time."""


def bucket_size(device: torch.device) -> int:
    """Elements of a bucket."""
    if device.type != "cpu":
        return BUCKET_GPU
    return BUCKET_ONE_THREAD if torch.get_num_threads() == 1 else BUCKET_CPU


def bucket_ranges(start: int, stop: int, device: torch.device) -> Iterator[tuple[int, int]]:
    """`start` to `stop` in buckets."""
    size = bucket_size(device)
    for first in range(start, stop, size):
        yield first, min(first + size, stop)


def kernel_ranges(start: int, stop: int, device: torch.device) -> Iterator[tuple[int, int]]:
    """`start` to `stop` in what kernels take together."""
    size = KERNEL_BUCKET_CPU if device.type == "cpu" else BUCKET_GPU
    for first in range(start, stop, size):
        yield first, min(first + size, stop)


def read_all(buffer: Buffer, start: int, stop: int, device: torch.device) -> Tensor:
    """What `buffer.read` gives, with the scratch of a bucket: a view where values are kept in compute precision."""
    if isinstance(buffer, Plain):
        return buffer.read(start, stop)
    values = torch.empty(stop - start, device=device)
    for first, last in bucket_ranges(start, stop, device):
        values[first - start : last - start] = buffer.read(first, last)
    return values


def write_all(buffer: Buffer, start: int, values: Tensor, noise: Callable[[int, int], Tensor]) -> None:
    """Write from `start` on with the scratch of a bucket. `noise(offset, numel)` gives random bits for elements from
    `offset` on of `values`."""
    for first, last in bucket_ranges(0, values.numel(), values.device):
        bits = functools.partial(noise, first, last - first)
        buffer.write(start + first, start + last, values[first:last], bits)


@dataclass(slots=True)
class Job:
    """`numel` elements of a parameter (from `param_start`), their gradient, and their moments (from `moment_start`).

    `noise(field, offset, numel)` gives random bits for elements `offset` to `offset + numel` of the job.
    """

    param: Buffer
    param_start: int
    grad: Tensor
    moments: Sequence[Buffer]
    moment_start: int
    numel: int
    noise: Callable[[str, int, int], Tensor]


def run(rule: Rule, jobs: Sequence[Job], numbers: Numbers, implementation: Implementation) -> None:
    """Update all elements of `jobs` by `rule`. Numbers that are tensors have one for each element of a row: the jobs
    have whole rows then."""
    if not jobs:
        return
    limit = bucket_size(jobs[0].grad.device)
    row = _row(numbers)
    if implementation == "compiled" and not row:
        _run_compiled(rule, [job for job in jobs if job.numel >= WORTH_A_KERNEL], numbers)
        jobs = [job for job in jobs if job.numel < WORTH_A_KERNEL]
    if row:
        # whole rows, and whole blocks of 8-bit state
        unit = math.lcm(row, BLOCK)
        limit = max(limit // unit, 1) * unit
    buckets = ([(job, 0, job.numel)] for job in jobs) if implementation == "loop" else _buckets(jobs, limit)
    for bucket in buckets:
        read = [_read(*entry) for entry in bucket]
        if implementation == "loop" or row:
            _apply_singly(rule, read, numbers, row or 1)
        else:
            _apply_together(rule, read, numbers)
        for (job, start, stop), (param, _, moments) in zip(bucket, read, strict=True):
            _write(job, start, stop, param, moments)


def resolve(implementation: Implementation, elements: int, device: torch.device) -> Implementation:
    """What `auto` stands for."""
    if implementation != "auto":
        return implementation
    return "compiled" if elements >= WORTH_COMPILING and can_compile(device.type) else "foreach"


def _row(numbers: Numbers) -> int:
    """Elements of a row, where the elements of a row have numbers of their own, else 0."""
    return next((value.numel() for value in numbers.values() if isinstance(value, Tensor)), 0)


def _buckets(jobs: Sequence[Job], limit: int) -> Iterator[list[tuple[Job, int, int]]]:
    """Ranges of jobs, at most `limit` elements together; ranges begin at multiples of `limit`."""
    bucket: list[tuple[Job, int, int]] = []
    size = 0
    for job in jobs:
        for start in range(0, job.numel, limit):
            stop = min(start + limit, job.numel)
            if size + stop - start > limit and bucket:
                yield bucket
                bucket, size = [], 0
            bucket.append((job, start, stop))
            size += stop - start
    if bucket:
        yield bucket


def _read(job: Job, start: int, stop: int, read: Callable[..., Tensor] = read_buffer) -> Operands:
    param = read(job.param, job.param_start + start, job.param_start + stop)
    moments = [read(each, job.moment_start + start, job.moment_start + stop) for each in job.moments]
    grad = job.grad if start == 0 and stop == job.grad.numel() else job.grad[start:stop]
    return param, grad if grad.dtype == param.dtype else grad.to(param.dtype), moments


def _write(
    job: Job, start: int, stop: int, param: Tensor, moments: Sequence[Tensor],
    write: Callable[..., None] = write_buffer,
) -> None:  # fmt: skip
    write(job.param, job.param_start + start, job.param_start + stop, param, job.noise, "param", start)
    first, last = job.moment_start + start, job.moment_start + stop
    for index, (buffer, value) in enumerate(zip(job.moments, moments, strict=True)):
        write(buffer, first, last, value, job.noise, f"moment{index}", start)


def _apply_together(rule: Rule, read: Sequence[Operands], numbers: Numbers) -> None:
    params, grads, moments = zip(*read, strict=True)
    rule.foreach(list(params), list(grads), [list(each) for each in zip(*moments, strict=True)], numbers)


def _apply_singly(rule: Rule, read: Sequence[Operands], numbers: Numbers, row: int) -> None:
    for param, grad, moments in read:
        old = [values.view(-1, row) for values in (param, *moments)]
        for kept, new in zip(old, rule.update(old[0], grad.view(-1, row), old[1:], numbers), strict=True):
            kept.copy_(new)


def _run_compiled(rule: Rule, jobs: Sequence[Job], numbers: Numbers) -> None:
    """Views as they are, and copies bucket by bucket."""
    views, copies = [], []
    for job in jobs:
        is_view = all(isinstance(buffer, Plain) for buffer in (job.param, *job.moments))
        is_read_whole = is_view and job.grad.dtype == job.param.values.dtype
        (views if is_read_whole else copies).append(job)
    if views:
        update_compiled(rule, [_read(job, 0, job.numel) for job in views], numbers)
    limit = KERNEL_BUCKET_CPU if copies and copies[0].grad.is_cpu else BUCKET_GPU
    for bucket in _buckets(copies, limit):
        read = [_read(*entry, read_compiled) for entry in bucket]
        update_compiled(rule, read, numbers)
        for (job, start, stop), (param, _, moments) in zip(bucket, read, strict=True):
            _write(job, start, stop, param, moments, write_compiled)
