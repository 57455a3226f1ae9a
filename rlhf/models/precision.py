"""In which precision a matrix product is computed, where the hardware decides."""

from functools import lru_cache

import torch


@lru_cache(maxsize=1)
def cpu_has_bfloat16_matmul() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in hardware (AVX512 or AMX).

    Without it torch falls back to a scalar loop, about ten times slower than float32 and with no gain in memory
    traffic.
    """
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def matmul_dtype(tensor: torch.Tensor) -> torch.dtype:
    """The precision for products with `tensor`: its own, but float32 for half precision on a CPU that emulates it.

    float32 products of bfloat16 numbers are exact up to summation, so this never costs accuracy.
    """
    if (
        tensor.device.type == "cpu"
        and tensor.dtype in (torch.bfloat16, torch.float16)
        and not cpu_has_bfloat16_matmul()
    ):
        return torch.float32
    return tensor.dtype


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Where sums, exponentials and gradients of weights are kept: float32, or float64 for float64 inputs."""
    return torch.float64 if dtype == torch.float64 else torch.float32
