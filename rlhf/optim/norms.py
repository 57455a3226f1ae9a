"""Sums of squares that do not lose digits, however many elements they are of."""

import torch
from torch import Tensor

ROW = 1024
"""Elements whose squares are summed in float32 before the sums are added in float64. torch's norm of 7 million
float32 elements on a CPU, summed in one go, is 2e-4 off, and would depend on how a matrix is cut."""


def sum_of_squares(flat_N: Tensor) -> Tensor:
    """Of float32 or float64 elements, a float64 scalar."""
    stop = flat_N.numel() // ROW * ROW
    rows = torch.linalg.vector_norm(flat_N[:stop].view(-1, ROW), dim=1).double().square().sum()
    return rows + torch.linalg.vector_norm(flat_N[stop:]).double().square()
