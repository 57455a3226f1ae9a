"""AdaBelief (Zhuang et al. 2020, arXiv 2010.07468): a step is large where gradients agree with their running mean."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from rlhf.optim.base import FlatOptimizer, Slot, full_job, lacks_layout
from rlhf.optim.elementwise import Job, bucket_ranges
from rlhf.optim.layout import sum_by_tensor
from rlhf.optim.norms import sum_of_squares
from rlhf.optim.rules import AdaBeliefRule, Numbers

RULE = AdaBeliefRule()
ADABELIEF_KEYS = {
    "eps_mode": "accumulate", "weight_decouple": True, "fixed_decay": False, "rectify": False,
    "degenerated_to_sgd": True, "amsgrad": False,
}  # fmt: skip
"""The rule's settings and their defaults; see `AdaBeliefRule`."""


class AdaBelief(FlatOptimizer):
    """AdaBelief as adabelief-pytorch 0.2.1 computes it, but with `rectify` off.

    Rectification makes the first five steps plain momentum steps of size lr * m: at the learning rates and gradients of
    RL fine-tuning they do nothing. `eps` is added to the stored moment at every step (`eps_mode`), so it acts like an
    Adam eps of sqrt(eps / (1 - beta2)): 1e-16 like 3e-7, 1e-19 like 1e-8. `max_update_rms` bounds the RMS of a tensor's
    step over lr: gradients that persist make steps grow without it (docs/optimizers.md).

    State: two values a parameter, three with `amsgrad`. Raises ValueError for settings that contradict each other.
    """

    def __init__(
        self, params: Iterable, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-16,
        weight_decay: float = 0.0, *, max_update_rms: float | None = None, **settings: Any,
    ) -> None:  # fmt: skip
        """`settings`: those of `AdaBeliefRule` and of `SHARED_DEFAULTS`."""
        defaults = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay,
                    "max_update_rms": max_update_rms}  # fmt: skip
        super().__init__(params, defaults | ADABELIEF_KEYS, settings)

    def check_group(self, group: Mapping[str, Any]) -> None:
        super().check_group(group)
        check_adabelief(group)
        limit = group["max_update_rms"]
        if limit is not None and limit <= 0:
            raise ValueError(f"max_update_rms is {limit}: it must be above 0, or None for no bound")
        if limit is not None and group["rectify"]:
            raise ValueError("max_update_rms bounds adaptive steps, and rectify has others: turn one of them off")

    def allocate(self, group: Mapping[str, Any], slot: Slot) -> None:
        self.allocate_full(group, slot, RULE)

    def update_group(self, group: dict[str, Any], slots: list[Slot], gradient_rms: float | None) -> None:
        lr = float(group["lr"])
        if group["max_update_rms"] is None:
            self.update_full(group, slots, RULE, lr)
            return
        if lacks_layout(group):
            raise ValueError(
                "max_update_rms bounds the step of a tensor, and DeepSpeed's flat partitions have several: call "
                "rlhf.optim.zero.attach_zero_layout(engine) after deepspeed.initialize"
            )
        self._update_bounded(group, slots, lr)

    def _update_bounded(self, group: dict[str, Any], slots: list[Slot], lr: float) -> None:
        """The step of each tensor scaled to the bound on its RMS: one pass over moments and gradients measures the
        steps, one over moments and parameters takes them. `impl` has no say."""
        jobs, numbers, sums = [], [], []
        for slot in slots:
            self.allocate_full(group, slot, RULE)
            slot.state["step"] += 1
            jobs.append(full_job(group, slot, RULE, float(slot.state["step"])))
            numbers.append(RULE.numbers(group, lr, float(slot.state["step"])))
            sums.append(_measured(slot, jobs[-1], numbers[-1]))
        layouts = [slot.layout for slot in slots]
        sums_P = sum_by_tensor(layouts, torch.cat(sums))
        shapes = [piece.shape for layout in layouts for piece in layout.pieces]
        numels_P = torch.tensor([torch.Size(shape).numel() for shape in shapes], dtype=torch.float64)
        limit = lr * group["max_update_rms"]
        # no step at all has no RMS to divide by
        scales_P = limit / (sums_P.cpu() / numels_P).sqrt().clamp_min(1e-300)
        scales = iter(scales_P.clamp_max(1.0).tolist())
        for slot, job, of_step in zip(slots, jobs, numbers, strict=True):
            for piece in slot.layout.pieces:
                scaled = of_step | {"step_size": of_step["step_size"] * next(scales)}
                _descend(job, piece.offset, piece.offset + piece.numel, scaled)


def _measured(slot: Slot, job: Job, numbers: Numbers) -> Tensor:
    """Update the moments; the sum of the squares of each piece's step, shape (P,), float64."""
    sums_P = torch.zeros(len(slot.layout.pieces), dtype=torch.float64, device=job.grad.device)
    for start, stop in bucket_ranges(0, job.numel, job.grad.device):
        param = job.param.read(start, stop)
        moments = [[buffer.read(start, stop)] for buffer in job.moments]
        scratch = RULE.average([param], [job.grad[start:stop].to(param.dtype)], moments, numbers)
        for index, (buffer, (moment,)) in enumerate(zip(job.moments, moments, strict=True)):
            bits = functools.partial(job.noise, f"moment{index}", start, stop - start)
            buffer.write(start, stop, moment, bits)
        step = torch.zeros_like(param)
        RULE.descend([step], moments, scratch, numbers)
        for index, first, last in slot.layout.parts(start, stop):
            sums_P[index] += sum_of_squares(step[first - start : last - start])
    return sums_P


def _descend(job: Job, start: int, stop: int, numbers: Numbers) -> None:
    """Decay, and the step by the moments as they are."""
    for first, last in bucket_ranges(start, stop, job.grad.device):
        param = job.param.read(first, last)
        moments = [[buffer.read(first, last)] for buffer in job.moments]
        param.mul_(numbers["decay"])
        RULE.descend([param], moments, [torch.empty_like(param)], numbers)
        job.param.write(first, last, param, functools.partial(job.noise, "param", first, last - first))


def check_adabelief(group: Mapping[str, Any]) -> None:
    """Raises ValueError where AdaBelief's settings contradict each other."""
    if group["eps_mode"] not in ("accumulate", "additive"):
        raise ValueError(f"eps_mode is {group['eps_mode']!r}: choose accumulate or additive")
    if group["eps"] == 0:
        raise ValueError(f"eps is {group['eps']}: elements without a gradient would divide 0 by 0; use 1e-16 or 1e-19")
    if group["eps_mode"] == "additive" and group["rectify"]:
        raise ValueError("eps_mode additive corrects the second moment, rectify uses it as stored: choose one")
