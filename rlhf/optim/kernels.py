"""Elementwise rules compiled by torch.compile: one pass over parameter, gradient and moments instead of one for each
operation."""

import functools
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf.optim.rules import Numbers, Rule

TENSORS = 8
"""Tensors of one size that share the call of a kernel, which costs some 50 microseconds; more make compiling longer."""

Operands = tuple[Tensor, Tensor, Sequence[Tensor]]
"""Parameter, gradient and moments: flat, of one length and dtype."""


def update_compiled(rule: Rule, operands: Sequence[Operands], numbers: Numbers) -> None:
    """Update parameters and moments in place. Raises what torch.compile raises where there is no compiler."""
    # numbers that change with the step are a tensor, or every step would be compiled anew
    values = {name: value for name, value in numbers.items() if not isinstance(value, str)}
    kinds = tuple((name, value) for name, value in numbers.items() if isinstance(value, str))
    by_shape: dict[tuple[int, torch.dtype, int], list[list[Tensor]]] = {}
    for param, grad, moments in operands:
        shape = (len(moments), param.dtype, param.numel())
        by_shape.setdefault(shape, []).append([_standalone(each) for each in (param, grad, *moments)])
    for (moments, dtype, _), alike in by_shape.items():
        numbers_K = torch.tensor(list(values.values()), dtype=dtype)
        whole = len(alike) // TENSORS * TENSORS
        for tensors, stop in ((TENSORS, whole), (1, len(alike))):
            kernel = _compile(rule, tuple(values), kinds, moments, tensors)
            for first in range(0 if tensors > 1 else whole, stop, tensors):
                kernel(numbers_K, *(each for part in alike[first : first + tensors] for each in part))
    # what is written through an alias is not seen by autograd, which would use it in a later backward pass
    torch.autograd.graph.increment_version([param for param, _, _ in operands])


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
    rule: Rule, names: tuple[str, ...], kinds: tuple[tuple[str, Any], ...], moments: int, tensors: int
) -> Callable[..., None]:
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
    return torch.compile(own, fullgraph=True, dynamic=True)


def _standalone(view: Tensor) -> Tensor:
    """The same memory as a tensor that begins it. A kernel would be compiled anew for whether a view begins at 0, and
    for whether views begin at the same place."""
    return torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(view.detach()))
