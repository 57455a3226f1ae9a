"""Elementwise rules compiled by torch.compile: one pass over parameter, gradient and moments instead of one for each
operation."""

import functools
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf.optim.direct_call import DirectCall
from rlhf.optim.rules import Numbers, Rule

TENSORS = 8
"""Tensors that share the call of a kernel; more make compiling longer."""

Operands = tuple[Tensor, Tensor, Sequence[Tensor]]
"""Parameter, gradient and moments: flat, of one length and dtype."""


def update_compiled(rule: Rule, operands: Sequence[Operands], numbers: Numbers) -> None:
    """Update parameters and moments in place. Raises what torch.compile raises where there is no compiler."""
    # numbers that change with the step are a tensor, or every step would be compiled anew
    values = {name: value for name, value in numbers.items() if not isinstance(value, str)}
    kinds = tuple((name, value) for name, value in numbers.items() if isinstance(value, str))
    by_kind: dict[tuple[int, torch.dtype], dict[int, list[list[Tensor]]]] = {}
    for param, grad, moments in operands:
        of_size = by_kind.setdefault((len(moments), param.dtype), {}).setdefault(param.numel(), [])
        of_size.append([param, grad, *moments])
    for (moments, dtype), by_size in by_kind.items():
        numbers_K = torch.tensor(list(values.values()), dtype=dtype)
        device = operands[0][0].device
        for tensors, is_one_size, part in _calls(list(by_size.values())):
            kernel = _compile(rule, tuple(values), kinds, moments, tensors, is_one_size, dtype, device)
            kernel(numbers_K, *(each for one in part for each in one))
    # what is written through an alias is not seen by autograd, which would use it in a later backward pass
    torch.autograd.graph.increment_version([param for param, _, _ in operands])


def _calls(by_size: Sequence[list[list[Tensor]]]) -> Iterator[tuple[int, bool, list[list[Tensor]]]]:
    """(tensors of a call, whether they are of one size, their operands). Tensors of one size share one loop of a
    kernel; of what is left as many as are worth another kernel share a call, and the last are single."""
    rest = []
    for alike in by_size:
        whole = len(alike) // TENSORS * TENSORS
        for first in range(0, whole, TENSORS):
            yield TENSORS, True, alike[first : first + TENSORS]
        rest += alike[whole:]
    shared = len(rest) // TENSORS * TENSORS if len(rest) >= 4 * TENSORS else 0
    for first in range(0, shared, TENSORS):
        yield TENSORS, False, rest[first : first + TENSORS]
    for one in rest[shared:]:
        yield 1, True, [one]


@functools.cache
def can_compile(device_type: str) -> bool:
    """Whether torch.compile has what it needs here: Triton on a GPU, a C++ compiler on a CPU."""
    if device_type == "cuda":
        return torch.utils._triton.has_triton()
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler:
        return False
    return True


@functools.cache
def _compile(
    rule: Rule, names: tuple[str, ...], kinds: tuple[tuple[str, Any], ...], moments: int, tensors: int,
    is_one_size: bool, dtype: torch.dtype, device: torch.device,
) -> Callable[..., None]:  # fmt: skip
    """A kernel that takes the numbers as one tensor and, for each of so many tensors, parameter, gradient, moments."""

    def update(numbers_K: Tensor, *operands: Tensor) -> None:
        numbers = dict(zip(names, numbers_K.unbind(), strict=True)) | dict(kinds)
        for first in range(0, len(operands), moments + 2):
            param, grad, *old = operands[first : first + moments + 2]
            for kept, value in zip((param, *old), rule.update(param, grad, old, numbers), strict=True):
                kept.copy_(value)

    # torch counts compilations by code object, and refuses more than eight of one: each kernel has its own
    name = f"update_{tensors}"
    own = types.FunctionType(update.__code__.replace(co_name=name), globals(), name, None, update.__closure__)
    # sizes that are equal in the first call are taken to be equal in all, and those that are not are not. None of them
    # is to be that of the numbers
    sizes = [1000 + (0 if is_one_size else index) for index in range(tensors)]
    samples = [torch.zeros(size, dtype=dtype, device=device) for size in sizes for _ in range(moments + 2)]
    return DirectCall(own, [torch.ones(len(names), dtype=dtype), *samples])
