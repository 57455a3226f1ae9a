"""One pass over tokens x vocabulary in blocks: logits, the logit change of a step, and their softmax moments.

The vocabulary is the outer loop. So a block of the weight and of the optimizer's state is read and converted once, and
what is kept per token is a dozen numbers. Memory is O(token_chunk x vocab_chunk + vocab_chunk x D + N).

Shapes: N tokens, D hidden size (one more with a bias), V vocabulary; n tokens and b vocabulary rows of a block.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from rlhf.algorithms.output_head import OutputHead, slices
from rlhf.algorithms.softmax_moments import SoftmaxMoments, block_moments


class StepBlock(NamedTuple):
    """What a step of learning rate 1 does to some rows of the weight, for a token with input h and logit gradient r:

        dW_k = fixed_k + c r_k scale_k o h        so        dW_k . h = fixed_k . h + c r_k scale_k . (h o h)

    `fixed_bD` None is 0. `scale_bD` None is 1, and its h . h is left to the coefficient c. Without `has_own` the step
    is the same for every token, and there is no second part.
    """

    fixed_bD: Tensor | None = None
    scale_bD: Tensor | None = None
    has_own: bool = True


class MomentStream:
    """Collects the moments of every token; `visit` takes one block of tokens x vocabulary, in reused memory."""

    def __init__(
        self,
        head: OutputHead,
        hidden_ND: Tensor,
        actions_N: Tensor,
        chunks: tuple[int, int],
        *,
        with_excess: bool = False,
    ) -> None:
        self.head, self.hidden_ND, self.actions_N, self.with_excess = head, hidden_ND, actions_N, with_excess
        self.token_chunk, self.vocab_chunk = chunks
        self.moments = SoftmaxMoments.empty(len(hidden_ND), hidden_ND.new_empty(0, dtype=head.dtype))
        self._size = min(self.token_chunk, len(hidden_ND)) * min(self.vocab_chunk, head.vocabulary)
        self._buffers: dict[str, Tensor] = {}

    def columns(self) -> list[slice]:
        """The vocabulary's blocks."""
        return list(slices(self.head.vocabulary, self.vocab_chunk))

    def token_blocks(self, rows: slice | None = None) -> list[slice]:
        """The blocks of all tokens, or of the tokens in `rows`."""
        rows = rows or slice(0, len(self.hidden_ND))
        blocks = slices(rows.stop - rows.start, self.token_chunk)
        return [slice(rows.start + block.start, rows.start + block.stop) for block in blocks]

    def inputs(self, rows: slice) -> Tensor:
        return self.head.inputs(self.hidden_ND[rows])

    def logits(self, input_nD: Tensor, weight_bD: Tensor) -> tuple[Tensor, Tensor | None]:
        """(logits, their slope by the head's output or None where it is 1), (n, b), in reused memory."""
        logits_nb = self._product("logits", input_nD, weight_bD)
        if self.head.softcap is None:
            return logits_nb, None
        return logits_nb, self.head.cap_(logits_nb, out=self._buffer("slope", logits_nb))

    def visit(self, rows: slice, columns: slice, weight_bD: Tensor, step: StepBlock) -> None:
        """Adds the ids of `columns` to the moments of the tokens in `rows`."""
        input_nD = self.inputs(rows)
        logits_nb, slope_nb = self.logits(input_nD, weight_bD)
        fixed_nb = scale_nb = None
        if step.fixed_bD is not None:
            fixed_nb = self._product("fixed", input_nD, step.fixed_bD)
            if slope_nb is not None:
                fixed_nb.mul_(slope_nb)
        if step.has_own and step.scale_bD is not None:
            scale_nb = self._product("scale", input_nD.square(), step.scale_bD)
            if slope_nb is not None:
                scale_nb.mul_(slope_nb).mul_(slope_nb)
        elif step.has_own and slope_nb is not None:
            scale_nb = slope_nb.square_()
        moments = self.moments[rows]
        block = block_moments(
            logits_nb,
            self.actions_N[rows] - columns.start,
            moments.max_N,
            fixed_nb=fixed_nb,
            scale_nb=scale_nb,
            has_own=step.has_own,
            weighted_nb=None if fixed_nb is None else self._buffer("weighted", logits_nb),
            own_nb=self._buffer("own", logits_nb) if step.has_own and scale_nb is None else scale_nb,
            with_excess=self.with_excess,
        )
        moments.merge_(block, with_excess=self.with_excess)

    def _product(self, name: str, left_nD: Tensor, right_bD: Tensor) -> Tensor:
        out = self._memory(name)[: len(left_nD) * len(right_bD)].view(len(left_nD), len(right_bD))
        return torch.mm(left_nD, right_bD.t(), out=out)

    def _buffer(self, name: str, like: Tensor) -> Tensor:
        return self._memory(name)[: like.numel()].view(like.shape)

    def _memory(self, name: str) -> Tensor:
        if name not in self._buffers:
            self._buffers[name] = self.hidden_ND.new_empty(self._size, dtype=self.head.dtype)
        return self._buffers[name]
