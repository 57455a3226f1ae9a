"""Checksums that prove the engine runs the learner's weights."""

import hashlib

import torch


def tensor_checksum(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> str:
    """Hash of a tensor's values and shape after a cast to `dtype` (the engine's), independent of device and layout."""
    values = tensor.detach().to(dtype or tensor.dtype).contiguous().cpu()
    digest = hashlib.blake2b(repr(tuple(values.shape)).encode(), digest_size=8)
    digest.update(values.view(torch.uint8).numpy().data if values.numel() else b"")
    return digest.hexdigest()
