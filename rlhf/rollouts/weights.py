"""Checksums that prove the engine runs the learner's weights: made where the tensor lives, cheap enough for every step.

A tensor's bytes are read as 32-bit words and hashed by a multilinear function: in each block of words, the sum of
word_i * key_i modulo 2^64 with fixed random odd keys; block sums are chained by a polynomial (Carter and Wegman 1979,
"Universal classes of hash functions"; Lemire and Kaser 2014, "Strongly universal string hashing is fast"). A change of
one word always shows, since odd keys are invertible; any other change within a block that does not depend on the keys
goes unnoticed with a probability of at most 2^-32. Order, shape and every bit count. Integer sums are exact, so every
device gives the same result. Not cryptographic: it finds mistakes, not forgeries.
"""

import hashlib
from collections.abc import Iterable, Mapping
from functools import lru_cache

import torch

WORDS_PER_BLOCK = 1 << 16
# blocks hashed at once: on CPU the working set stays in the cache, on CUDA it must fill the device
BLOCKS_AT_ONCE = {"cpu": 2, "cuda": 256}
_MODULUS = 1 << 64
_CHAIN = 0x9E3779B97F4A7C15


def tensor_checksum(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> str:
    """Hash of a tensor's values and shape after a cast to `dtype` (the engine's), independent of device and layout."""
    values = tensor.detach().to(dtype or tensor.dtype).contiguous()
    digest = hashlib.blake2b(repr((tuple(values.shape), str(values.dtype))).encode(), digest_size=8)
    words = values.view(-1).view(torch.uint8)
    if words.numel() % 4:
        words = torch.nn.functional.pad(words, (0, -words.numel() % 4))
    state = 0
    for block_sum in _block_sums(words.view(torch.int32)):
        state = (state * _CHAIN + block_sum + 1) % _MODULUS
    digest.update(state.to_bytes(8, "little"))
    return digest.hexdigest()


def weight_checksums(weights: Iterable[tuple[str, torch.Tensor]], dtype: torch.dtype) -> dict[str, str]:
    """Checksum by name of (name, tensor) pairs as an engine of this dtype holds them."""
    return {name: tensor_checksum(tensor, dtype) for name, tensor in weights}


def compare_checksums(learner: Mapping[str, str], engine: Mapping[str, str]) -> list[str]:
    """What differs between the learner's and the engine's weights, one readable line a parameter; empty when equal.

    A tied LM head may be absent on either side: `lm_head.weight` is then compared with that side's input embedding.
    """
    differences = []
    for name in sorted(learner.keys() | engine.keys()):
        in_learner, in_engine = _lookup(learner, name), _lookup(engine, name)
        if in_learner is None:
            differences.append(f"{name}: the learner has no such parameter")
        elif in_engine is None:
            differences.append(f"{name}: the engine has no such parameter")
        elif in_learner != in_engine:
            differences.append(f"{name}: learner {in_learner}, engine {in_engine}")
    return differences


def _lookup(checksums: Mapping[str, str], name: str) -> str | None:
    if name in checksums or name != "lm_head.weight":
        return checksums.get(name)
    embeddings = [key for key in checksums if key.endswith(("embed_tokens.weight", "wte.weight", "embed_in.weight"))]
    return checksums[embeddings[0]] if len(embeddings) == 1 else None


@lru_cache(maxsize=4)
def _keys(device: torch.device) -> torch.Tensor:
    """Random odd 64-bit keys (words,), the same everywhere: drawn with a fixed seed on the CPU."""
    generator = torch.Generator().manual_seed(20_260_101)
    keys = torch.randint(-(2**63), 2**63 - 1, (WORDS_PER_BLOCK,), generator=generator, dtype=torch.int64)
    return (keys | 1).to(device)


def _block_sums(words: torch.Tensor) -> list[int]:
    keys = _keys(words.device)
    at_once = BLOCKS_AT_ONCE.get(words.device.type, 1)
    full = words.numel() // WORDS_PER_BLOCK
    blocks = words[: full * WORDS_PER_BLOCK].view(full, WORDS_PER_BLOCK)
    # int64 * int32 multiplies in int64 without a converted copy of the words
    sums = [(chunk * keys).sum(-1) for chunk in blocks.split(at_once)] if full else []
    rest = words[full * WORDS_PER_BLOCK :]
    if rest.numel():
        sums.append((rest * keys[: rest.numel()]).sum().view(1))
    return torch.cat(sums).tolist() if sums else []
