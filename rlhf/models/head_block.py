"""One block of the streamed LM head: logits, softmax statistics, and the gradient in the same memory."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from rlhf.models.precision import accumulation_dtype, matmul_dtype

if TYPE_CHECKING:
    from rlhf.models.head import HeadSettings

MIB = 1 << 20
DEFAULT_BLOCK_BYTES = {"cpu": 48 * MIB, "cuda": 256 * MIB}
# a weight's gradient is read and written once a block, so a block must hold enough tokens to pay for that
MIN_DEFAULT_TOKENS = 128
# float32 rows whose elementwise work is done together: on CPU small enough for the cache, on CUDA large enough to fill
# the device
STEP_BYTES = {"cpu": 2 * MIB, "cuda": 128 * MIB}
# vocabulary rows whose weight, or gradient of it, is held in a second precision at once
SLICE_BYTES = 8 * MIB


def block_rows(count: int, projection: "Projection", block_bytes: int | None) -> int:
    """How many of `count` tokens a block holds (at least 1); blocks are evened out so that the last is not a stub."""
    row_bytes = projection.vocabulary * projection.dtype.itemsize
    if block_bytes is None:
        default = DEFAULT_BLOCK_BYTES.get(projection.weight_VD.device.type, DEFAULT_BLOCK_BYTES["cpu"])
        rows = max(MIN_DEFAULT_TOKENS, default // row_bytes)
    else:
        rows = max(1, block_bytes // row_bytes)
    blocks = max(1, -(-count // rows))
    return max(1, -(-count // blocks))


class Projection:
    """The LM head's linear map and the gradients of its weight and bias, summed over blocks in float32.

    `dtype` is that of the products (see `matmul_dtype`); a weight in another precision is converted slice by slice.
    `needs`: whether the gradients of (hidden states, weight, bias) are wanted.
    """

    def __init__(self, weight_VD: torch.Tensor, bias_V: torch.Tensor | None, needs: tuple[bool, ...]) -> None:
        self.weight_VD, self.bias_V = weight_VD, bias_V
        self.vocabulary = weight_VD.shape[0]
        self.dtype = matmul_dtype(weight_VD)
        sums = accumulation_dtype(weight_VD.dtype)
        self._by_weight_VD = torch.zeros_like(weight_VD, dtype=sums) if needs[1] else None
        self._by_bias_V = torch.zeros_like(bias_V, dtype=sums) if needs[2] and bias_V is not None else None
        rows = max(1, SLICE_BYTES // (weight_VD.shape[1] * sums.itemsize))
        self._slices = [slice(s, min(s + rows, self.vocabulary)) for s in range(0, self.vocabulary, rows)]
        self._whole = [slice(0, self.vocabulary)]

    def cast(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.dtype)

    def logits(self, hidden_nD: torch.Tensor, out_nV: torch.Tensor) -> None:
        for rows, weight in self._weights():
            torch.mm(hidden_nD, weight.t(), out=out_nV[:, rows])

    def hidden_gradient(self, by_logits_nV: torch.Tensor) -> torch.Tensor:
        total = None
        for rows, weight in self._weights():
            part = by_logits_nV[:, rows]
            total = part @ weight if total is None else total.addmm_(part, weight)
        return total

    def accumulate(self, by_logits_nV: torch.Tensor, hidden_nD: torch.Tensor) -> None:
        """Add a block's gradients of weight and bias, where they are wanted."""
        if self._by_bias_V is not None:
            self._by_bias_V += by_logits_nV.sum(0, dtype=self._by_bias_V.dtype)
        total = self._by_weight_VD
        if total is None:
            return
        if total.dtype == self.dtype:
            total.addmm_(by_logits_nV.t(), hidden_nD)
            return
        for rows in self._slices:
            total[rows] += by_logits_nV[:, rows].t() @ hidden_nD

    def gradients(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """(weight's, bias's) gradients; they stay in float32 until autograd casts them to the parameter's precision."""
        return self._by_weight_VD, self._by_bias_V

    def _weights(self) -> Iterator[tuple[slice, torch.Tensor]]:
        for rows in self._whole if self.weight_VD.dtype == self.dtype else self._slices:
            yield rows, self.weight_VD[rows].to(self.dtype)


class Block:
    """Reusable memory for the blocks of one visit: e^(x - max x) in the products' precision, then the logits' gradient.

    Keeping the exponentials, not the logits, means that each logit is exponentiated once.
    """

    def __init__(self, projection: Projection, rows: int, settings: "HeadSettings", dtype: torch.dtype) -> None:
        self.projection, self.settings = projection, settings
        weight = projection.weight_VD
        self._buffer_nV = weight.new_empty(rows, projection.vocabulary, dtype=projection.dtype)
        row_bytes = projection.vocabulary * dtype.itemsize
        self._step = min(rows, max(1, STEP_BYTES.get(weight.device.type, STEP_BYTES["cpu"]) // row_bytes))
        shape = (self._step, projection.vocabulary)
        self._exp_kV = weight.new_empty(shape, dtype=dtype)
        # float32 products leave float32 logits in the buffer itself
        self._shift_kV = None if projection.dtype == dtype else weight.new_empty(shape, dtype=dtype)
        self._dtype = dtype
        self._size = 0

    def visit(
        self, hidden_nD: torch.Tensor, target_n: torch.Tensor, *, is_kept: bool, with_extras: bool
    ) -> list[torch.Tensor]:
        """[log-prob, entropy] and, with extras, [collision, max prob] of a block's targets, each (n,); `is_kept` leaves
        the exponentials for `differentiate`."""
        size = self._size = hidden_nD.shape[0]
        self.projection.logits(hidden_nD, self._buffer_nV[:size])
        self._max_n1, self._z_n1, logp_n1, self._entropy_n1, squares_n1 = (
            hidden_nD.new_empty(size, 1, dtype=self._dtype) for _ in range(5)
        )
        for rows in self._steps():
            x_kV, e_kV = self._transformed_logits(rows), self._exp_kV[: rows.stop - rows.start]
            max_k1 = x_kV.amax(-1, keepdim=True)
            x_kV.sub_(max_k1)
            torch.exp(x_kV, out=e_kV)
            z_k1 = e_kV.sum(-1, keepdim=True)
            log_z_k1 = z_k1.log()
            self._max_n1[rows], self._z_n1[rows] = max_k1, z_k1
            logp_n1[rows] = x_kV.gather(1, target_n[rows, None]) - log_z_k1
            self._entropy_n1[rows] = log_z_k1 - _dot(e_kV, x_kV) / z_k1
            if with_extras:
                squares_n1[rows] = _dot(e_kV, e_kV) / z_k1.square()
            if is_kept:
                self._buffer_nV[rows] = e_kV
        self._logp_n1 = logp_n1
        values = [logp_n1, self._entropy_n1]
        if with_extras:
            values += [squares_n1, self._z_n1.reciprocal()]
        return [value.squeeze(1) for value in values]

    def differentiate(
        self, target_n: torch.Tensor, by_logp_n: torch.Tensor, by_entropy_n: torch.Tensor | None
    ) -> torch.Tensor:
        """dloss/dlogits (n, V) before scale, softcap and temperature, in the block's own memory.

        a ([v = t] - p_v) - b p_v (log p_v + H) with a = dloss/dlogp and b = dloss/dentropy.
        """
        settings, buffer_nV = self.settings, self._buffer_nV[: self._size]
        a_n1 = by_logp_n.to(self._dtype).unsqueeze(1)
        b_n1 = None if by_entropy_n is None else by_entropy_n.to(self._dtype).unsqueeze(1)
        scale = settings.logit_scale / settings.temperature
        # the target's entry separately: a (1 - p) would lose its digits in bfloat16 where p is near 1
        at_target_n1 = -a_n1 * torch.expm1(self._logp_n1)
        if b_n1 is not None:
            at_target_n1 = at_target_n1 - b_n1 * self._logp_n1.exp() * (self._logp_n1 + self._entropy_n1)
        if settings.logit_softcap is not None:
            at_target_n1 = at_target_n1 * self._softcap_slope(self._logp_n1 + self._z_n1.log() + self._max_n1)
        for rows in self._steps():
            e_kV, z_k1 = buffer_nV[rows], self._z_n1[rows]
            if b_n1 is None and settings.logit_softcap is None:
                e_kV.mul_(-scale * a_n1[rows] / z_k1)
                continue
            exact_kV = e_kV.to(self._dtype)
            # an exponential that underflowed has p = 0 and so no gradient, whatever its logarithm
            shift_kV = torch.log(exact_kV, out=self._exp_kV[: rows.stop - rows.start]).clamp_(min=-1e30)
            slope_kV = None
            if settings.logit_softcap is not None:
                slope_kV = self._softcap_slope(shift_kV + self._max_n1[rows])
            if b_n1 is None:
                exact_kV = exact_kV * (-scale * a_n1[rows] / z_k1)
            else:
                b_k1 = b_n1[rows]
                constant_k1 = a_n1[rows] + b_k1 * (self._entropy_n1[rows] - z_k1.log())
                shift_kV.mul_(b_k1).add_(constant_k1).mul_(-scale / z_k1)
                exact_kV = shift_kV.mul_(exact_kV)
            if slope_kV is not None:
                exact_kV.mul_(slope_kV)
            e_kV.copy_(exact_kV)
        return buffer_nV.scatter_(1, target_n[:, None], (scale * at_target_n1).to(buffer_nV.dtype))

    def _steps(self) -> Iterator[slice]:
        for start in range(0, self._size, self._step):
            yield slice(start, min(start + self._step, self._size))

    def _transformed_logits(self, rows: slice) -> torch.Tensor:
        """Some logits (k, V) in float32 after bias, scale, softcap and temperature; may be overwritten."""
        settings, raw_kV = self.settings, self._buffer_nV[rows]
        x_kV = raw_kV if self._shift_kV is None else self._shift_kV[: rows.stop - rows.start].copy_(raw_kV)
        if self.projection.bias_V is not None:
            x_kV += self.projection.bias_V
        if settings.logit_softcap is not None:
            x_kV.mul_(settings.logit_scale / settings.logit_softcap).tanh_()
            return x_kV.mul_(settings.logit_softcap / settings.temperature)
        scale = settings.logit_scale / settings.temperature
        return x_kV if scale == 1 else x_kV.mul_(scale)

    def _softcap_slope(self, logits: torch.Tensor) -> torch.Tensor:
        """d softcap(u) / du = 1 - tanh(u)^2, from final logits softcap * tanh(u) / temperature."""
        tanh = (logits * (self.settings.temperature / self.settings.logit_softcap)).clamp_(-1, 1)
        return tanh.square_().neg_().add_(1)


def _dot(left_kV: torch.Tensor, right_kV: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vecdot(left_kV, right_kV).unsqueeze(1)
