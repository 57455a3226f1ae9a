"""AdaBelief's step with a bound on its RMS for each tensor: one pass measures the steps, another takes them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf.optim.base import Slot, compute_dtype, full_job
from rlhf.optim.compiled_buffers import read_buffer, read_compiled, write_buffer, write_compiled
from rlhf.optim.elementwise import WORTH_A_KERNEL, Job, bucket_ranges, kernel_ranges, resolve
from rlhf.optim.kernels import update_compiled
from rlhf.optim.layout import Pieces, sum_by_tensor
from rlhf.optim.norms import sum_of_squares
from rlhf.optim.rules import AdaBeliefRule, Numbers, Tensors

RULE = AdaBeliefRule()


class _Measure:
    """The step in the place of the parameter, and the new moments."""

    def update(self, param: Tensor, grad: Tensor, moments: Tensors, numbers: Numbers) -> tuple[Tensor, ...]:
        return RULE.update(torch.zeros_like(grad), grad, moments, numbers)


class _Descent:
    """The step by the moments as they are; the gradient is not looked at."""

    def update(self, param: Tensor, grad: Tensor, moments: Tensors, numbers: Numbers) -> tuple[Tensor, ...]:
        return param * numbers["decay"] - RULE.step(moments, numbers), *moments


MEASURE, DESCENT = _Measure(), _Descent()


def bounded_step(group: Mapping[str, Any], slots: Sequence[Slot], lr: float) -> None:
    """Update slots that have state; `group["max_update_rms"]` bounds the RMS of a tensor's step over `lr`, on all ranks
    that hold the tensor."""
    torch._foreach_add_([slot.state["step"] for slot in slots], 1)
    steps = [float(slot.state["step"]) for slot in slots]
    jobs = [full_job(group, slot, RULE, step) for slot, step in zip(slots, steps, strict=True)]
    numbers = [RULE.numbers(group, lr, step) for step in steps]
    impl = resolve(group["impl"], sum(job.numel for job in jobs), jobs[0].grad.device)
    passes = [_Compiled if impl == "compiled" and job.numel >= WORTH_A_KERNEL else _Plain for job in jobs]
    layouts = [slot.layout for slot in slots]
    ranges = [kernel_range for job in jobs for kernel_range in kernel_ranges(0, job.numel, job.grad.device)]
    longest = max((stop - start for start, stop in ranges), default=0)
    scratch = torch.empty(longest, dtype=compute_dtype(slots[0].values), device=slots[0].values.device)
    each = zip(passes, jobs, layouts, numbers, strict=True)
    sums = [_measured(one, job, layout, of_step, scratch) for one, job, layout, of_step in each]
    sums_P = sum_by_tensor(layouts, torch.cat(sums))
    shapes = [piece.shape for layout in layouts for piece in layout.pieces]
    numels_P = torch.tensor([torch.Size(shape).numel() for shape in shapes], dtype=torch.float64)
    # no step at all has no RMS to divide by
    scales_P = lr * group["max_update_rms"] / (sums_P.cpu() / numels_P).sqrt().clamp_min(1e-300)
    scales = iter(scales_P.clamp_max(1.0).tolist())
    for one, job, layout, of_step in zip(passes, jobs, layouts, numbers, strict=True):
        for piece in layout.pieces:
            scaled = of_step | {"step_size": of_step["step_size"] * next(scales)}
            _descend(one, job, piece.offset, piece.offset + piece.numel, scaled)


class _Plain:
    """Lists of one tensor, in the buckets of lists."""

    ranges: Callable[..., Iterator[tuple[int, int]]] = staticmethod(bucket_ranges)
    read, write = staticmethod(read_buffer), staticmethod(write_buffer)

    @staticmethod
    def average(
        param: Tensor, grad: Tensor, moments: Sequence[Tensor], numbers: Numbers, scratch: Tensor
    ) -> Tensor:
        """Update the moments; the step that they give, perhaps in the scratch."""
        scratch = RULE.average([param], [grad], [[moment] for moment in moments], numbers)
        step = torch.zeros_like(param)
        RULE.descend([step], [[moment] for moment in moments], scratch, numbers)
        return step

    @staticmethod
    def descend(param: Tensor, moments: Sequence[Tensor], numbers: Numbers) -> None:
        """Decay, and the step."""
        param.mul_(numbers["decay"])
        RULE.descend([param], [[moment] for moment in moments], [torch.empty_like(param)], numbers)


class _Compiled:
    """As `_Plain`, by kernels."""

    ranges: Callable[..., Iterator[tuple[int, int]]] = staticmethod(kernel_ranges)
    read, write = staticmethod(read_compiled), staticmethod(write_compiled)

    @staticmethod
    def average(
        param: Tensor, grad: Tensor, moments: Sequence[Tensor], numbers: Numbers, scratch: Tensor
    ) -> Tensor:
        if numbers["coupled_decay"]:
            grad = torch.add(grad, param, alpha=numbers["coupled_decay"])
        fits = (scratch.dtype, scratch.device) == (grad.dtype, grad.device)
        step = scratch[: grad.numel()] if fits else torch.empty_like(grad)
        update_compiled(MEASURE, [(step, grad, moments)], {**numbers, "decay": 1.0, "coupled_decay": 0.0})
        return step

    @staticmethod
    def descend(param: Tensor, moments: Sequence[Tensor], numbers: Numbers) -> None:
        update_compiled(DESCENT, [(param, moments[0], moments)], numbers)


def _measured(
    one: type[_Plain] | type[_Compiled], job: Job, layout: Pieces, numbers: Numbers, scratch: Tensor
) -> Tensor:
    """Update the moments; the sum of the squares of each piece's step, shape (P,), float64."""
    sums_P = torch.zeros(len(layout.pieces), dtype=torch.float64, device=job.grad.device)
    for start, stop in one.ranges(0, job.numel, job.grad.device):
        param = one.read(job.param, start, stop)
        moments = [one.read(buffer, start, stop) for buffer in job.moments]
        step = one.average(param, job.grad[start:stop].to(param.dtype), moments, numbers, scratch)
        for index, (buffer, moment) in enumerate(zip(job.moments, moments, strict=True)):
            one.write(buffer, start, stop, moment, job.noise, f"moment{index}", start)
        for index, first, last in layout.parts(start, stop):
            sums_P[index] += sum_of_squares(step[first - start : last - start])
    return sums_P


def _descend(one: type[_Plain] | type[_Compiled], job: Job, start: int, stop: int, numbers: Numbers) -> None:
    for first, last in one.ranges(start, stop, job.grad.device):
        param = one.read(job.param, first, last)
        one.descend(param, [one.read(buffer, first, last) for buffer in job.moments], numbers)
        one.write(job.param, first, last, param, job.noise, "param", first)
