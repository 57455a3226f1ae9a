"""Compiled functions that are called without torch.compile's look at every argument.

A compiled function checks at each call that its arguments are such as it was compiled for, and wraps them for autograd:
some 25 microseconds a tensor when that code is in the cache, and several times that behind a kernel that has streamed
a hundred megabytes through it. An optimizer calls few functions with many tensors of kinds that it knows, so the kernel
that inductor made is called itself.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

SMALL_INDEX = 2**31
"""Inductor may have indexed with 32 bits: from here on the checked function decides."""

Argument = int | tuple[int, int]
"""A tensor's place among the arguments, or the place and the dimension of which the size is meant."""


class DirectCall:
    """`function(*tensors)` compiled; it writes into its arguments and returns nothing.

    `samples`: tensors of the dtypes, devices and dimensions of all that will come. Sizes that are equal among them are
    taken to be equal in every call, others are free.
    """

    def __init__(self, function: Callable[..., None], samples: Sequence[Tensor]) -> None:
        self._inner: Callable[[list[Any]], Any] | None = None
        self._arguments: list[Argument] = []
        self._checked = torch.compile(function, fullgraph=True, dynamic=True, backend=self._backend)
        # a stored result would be loaded without passing by what looks at the graph; inductor's own cache stays
        self._samples = samples
        with torch._functorch.config.patch(enable_autograd_cache=False):
            self._checked(*samples)
        self._samples = ()

    def __call__(self, *tensors: Tensor) -> None:
        if self._inner is None or max(tensor.numel() for tensor in tensors) >= SMALL_INDEX:
            self._checked(*map(standalone, tensors))
            return
        self._inner(
            [
                tensors[argument] if isinstance(argument, int) else tensors[argument[0]].shape[argument[1]]
                for argument in self._arguments
            ]
        )

    @property
    def is_direct(self) -> bool:
        return self._inner is not None

    def _backend(self, graph: torch.fx.GraphModule, samples: Sequence[Any]) -> Callable[..., Any]:
        from torch._inductor.compile_fx import compile_fx, compile_fx_inner

        order = _order(graph, self._samples)

        def inner(functional: torch.fx.GraphModule, inputs: Sequence[Any], **settings: Any) -> Any:
            compiled = compile_fx_inner(functional, inputs, **settings)
            arguments = _arguments(functional, order) if len(order) == len(self._samples) else None
            # compiled anew, for other arguments than the samples: that code is reached through the checks only
            if self._inner is None and arguments is not None:
                self._inner, self._arguments = compiled, arguments
            return compiled

        return compile_fx(graph, samples, inner_compile=inner)


def _order(graph: torch.fx.GraphModule, samples: Sequence[Tensor]) -> list[int]:
    """Which of the samples the traced graph takes, in its order: that in which the function uses them."""
    given = [node.meta.get("grapharg") for node in graph.graph.nodes if node.op == "placeholder"]
    examples = [getattr(argument, "example", None) for argument in given]
    return [place for example in examples for place, sample in enumerate(samples) if example is sample]


def _arguments(functional: torch.fx.GraphModule, order: Sequence[int]) -> list[Argument] | None:
    """What inductor's graph takes: the tensors of the traced one, and sizes of them. None where it is not so."""
    values = [node.meta.get("val") for node in functional.graph.nodes if node.op == "placeholder"]
    tensors = [value for value in values if isinstance(value, Tensor)]
    if len(tensors) != len(order):
        return None
    sizes = {
        str(size): (place, dimension)
        for place, tensor in zip(order, tensors, strict=True) for dimension, size in enumerate(tensor.shape)
    }  # fmt: skip
    places = iter(order)
    arguments = [next(places) if isinstance(value, Tensor) else sizes.get(str(value)) for value in values]
    return None if None in arguments else arguments


def standalone(view: Tensor) -> Tensor:
    """The same memory as a tensor that begins at its storage's beginning. A function would be compiled anew for whether
    a view begins at 0, and for whether views begin at the same place."""
    values = view.detach() if view.requires_grad else view
    if values.storage_offset() == 0:
        return values
    return torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(values))
