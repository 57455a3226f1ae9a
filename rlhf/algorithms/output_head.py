"""How hidden states become logits, in blocks of vocabulary rows.

With W the head's weight, b its bias, s `logit_scale`, T `temperature` and c `logit_softcap`, a state h has the logits

    y = (s / T) (W h + b)          x = y,   or with a softcap   x = (c / T) tanh(y T / c)

A bias is one more column of W, against a hidden state that has one more component, 1. So it takes part in every
step as W does.

Shapes: N tokens, D hidden size (one more with a bias), V vocabulary; n tokens and b vocabulary rows of a block; K ids.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# (tokens, vocabulary rows) of a block: on CPU small enough that the few float32 blocks in use stay in the cache, on
# CUDA large enough to fill the device
DEFAULT_CHUNKS = {"cpu": (512, 1024), "cuda": (4096, 8192)}


def slices(count: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most `size` that cover range(count)."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def chunk_sizes(device: torch.device, token_chunk: int | None, vocab_chunk: int | None) -> tuple[int, int]:
    """Tokens and vocabulary rows of a block; None takes the device's default. Raises ValueError below 1."""
    defaults = DEFAULT_CHUNKS.get(device.type, DEFAULT_CHUNKS["cuda"])
    for name, value in (("token_chunk", token_chunk), ("vocab_chunk", vocab_chunk)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}: use None for the default")
    return token_chunk or defaults[0], vocab_chunk or defaults[1]


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a (V, D) matrix in `dtype`, each with its entry of `column_V` behind it where there is one.

    The matrix is only read by slices of rows (by ids where a top-k support is asked for), so it may be any object that
    gathers a sharded matrix slice by slice.
    """

    matrix_VD: Tensor
    column_V: Tensor | None
    dtype: torch.dtype

    def __getitem__(self, index: slice | Tensor) -> Tensor:
        rows = self.matrix_VD[index].to(self.dtype)
        if self.column_V is None:
            return rows
        return torch.cat([rows, self.column_V[index].to(self.dtype).unsqueeze(-1)], -1)


@dataclass(frozen=True, slots=True)
class OutputHead:
    """The linear head and what follows it; `gain` is s / T, `softcap` is c / T."""

    weight: Rows
    gain: float
    softcap: float | None

    @property
    def vocabulary(self) -> int:
        return self.weight.matrix_VD.shape[0]

    @property
    def width(self) -> int:
        """D, one more with a bias."""
        return self.weight.matrix_VD.shape[1] + (self.weight.column_V is not None)

    @property
    def dtype(self) -> torch.dtype:
        return self.weight.dtype

    def inputs(self, hidden_nD: Tensor) -> Tensor:
        """(s / T) h, with the bias's component behind it: y is its product with the weight's rows, and the gradient of
        y_k with respect to row k."""
        input_nD = hidden_nD.to(self.dtype) * self.gain
        if self.weight.column_V is None:
            return input_nD
        return torch.cat([input_nD, input_nD.new_full((len(input_nD), 1), self.gain)], -1)

    def cap_(self, y: Tensor, out: Tensor | None = None) -> Tensor | None:
        """Turns y into x in place and returns dx/dy, or None where it is 1.

        1 / cosh^2 keeps the digits that 1 - tanh^2 loses on a saturated logit.
        """
        if self.softcap is None:
            return None
        y.div_(self.softcap)
        slope = torch.cosh(y, out=out).square_().reciprocal_()
        y.tanh_().mul_(self.softcap)
        return slope


def output_head(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    actions_N: Tensor,
    *,
    bias_V: Tensor | None,
    temperature: float,
    logit_softcap: float | None,
    logit_scale: float,
) -> OutputHead:
    """The head, computed in float32, or in float64 where an input is.

    Half precision is converted block by block: products of bfloat16 numbers are exact in float32 (and in TF32), while
    logits rounded to bfloat16 would be coarser than the thresholds they are compared with.

    Raises ValueError where shapes do not fit together, an action is not in [0, V), or a setting is not above 0.
    """
    if hidden_ND.ndim != 2 or len(weight_VD.shape) != 2 or hidden_ND.shape[1] != weight_VD.shape[1]:
        raise ValueError(
            f"hidden states {tuple(hidden_ND.shape)} and LM head weight {tuple(weight_VD.shape)} "
            "must be (N, D) and (V, D)"
        )
    check_length(len(hidden_ND), actions_N=actions_N)
    check_length(weight_VD.shape[0], bias_V=bias_V)
    if len(actions_N) and not 0 <= int(actions_N.min()) <= int(actions_N.max()) < weight_VD.shape[0]:
        raise ValueError(
            f"actions from {int(actions_N.min())} to {int(actions_N.max())} for a vocabulary of {weight_VD.shape[0]}: "
            "every action must be an id in [0, V)"
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0 for log-probs to exist, got {temperature}")
    if logit_softcap is not None and not logit_softcap > 0:
        raise ValueError(f"logit_softcap must be above 0, got {logit_softcap}: use None for no softcap")
    is_double = torch.float64 in (hidden_ND.dtype, weight_VD.dtype)
    rows = Rows(weight_VD, bias_V, torch.float64 if is_double else torch.float32)
    return OutputHead(rows, logit_scale / temperature, None if logit_softcap is None else logit_softcap / temperature)


def check_length(count: int, **vectors: Tensor | None) -> None:
    """Raises ValueError naming the first vector that is not of shape (count,); None passes."""
    for name, vector in vectors.items():
        if vector is not None and tuple(vector.shape) != (count,):
            raise ValueError(f"{name} has shape {tuple(vector.shape)}, expected ({count},)")


def scores_(logits_nb: Tensor, log_normalizer_n: Tensor, column_n: Tensor) -> Tensor:
    """d log p_action / dx = [k = action] - p_k, in the logits' memory.

    `column_n` is the action's column, or one outside [0, b) where it is elsewhere. At the action it is 1 - p, from
    expm1: a difference from 1 would lose a confident token's digits.
    """
    inside_n1, column_n1, action_n1 = take_column(logits_nb, column_n)
    at_action_n1 = -torch.expm1(action_n1 - log_normalizer_n[:, None])
    logits_nb.sub_(log_normalizer_n[:, None]).exp_().neg_()
    elsewhere_n1 = logits_nb.gather(1, column_n1)
    return logits_nb.scatter_(1, column_n1, torch.where(inside_n1, at_action_n1, elsewhere_n1))


def take_column(matrix_nb: Tensor, column_n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(whether the column exists, the column moved into range, the entry there), each (n, 1)."""
    inside_n1 = ((column_n >= 0) & (column_n < matrix_nb.shape[1]))[:, None]
    column_n1 = column_n.clamp(0, matrix_nb.shape[1] - 1)[:, None]
    return inside_n1, column_n1, matrix_nb.gather(1, column_n1)
