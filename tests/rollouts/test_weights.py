"""Checksums: every kind of change shows, nothing else does."""

import pytest
import torch

from rlhf.rollouts.weights import (
    _CHAIN,
    _MODULUS,
    WORDS_PER_BLOCK,
    _block_sums,
    compare_checksums,
    tensor_checksum,
    weight_checksums,
)
from tests.cpu_time import cpu_seconds


def reference_checksum_state(tensor: torch.Tensor) -> int:
    """The polynomial of multilinear block sums, in Python integers."""
    generator = torch.Generator().manual_seed(20_260_101)
    keys = torch.randint(-(2**63), 2**63 - 1, (WORDS_PER_BLOCK,), generator=generator, dtype=torch.int64) | 1
    words = tensor.contiguous().view(-1).view(torch.int32).tolist()
    state = 0
    for start in range(0, len(words), WORDS_PER_BLOCK):
        block = words[start : start + WORDS_PER_BLOCK]
        block_sum = sum(word * key for word, key in zip(block, keys.tolist(), strict=False))
        state = (state * 0x9E3779B97F4A7C15 + block_sum + 1) % 2**64
    return state


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, WORDS_PER_BLOCK + 3), (7, 2 * WORDS_PER_BLOCK)])
def test_every_single_change_shows(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    tensor = torch.randn(shape).to(dtype)
    checksum = tensor_checksum(tensor)
    assert checksum == tensor_checksum(tensor.clone())
    integers = {4: torch.int32, 2: torch.int16}[tensor.element_size()]
    for place in {0, tensor.numel() // 2, tensor.numel() - 1}:
        for bit in (0, 7, 8 * tensor.element_size() - 1):
            changed = tensor.clone()
            flip = 1 << bit if bit < 8 * tensor.element_size() - 1 else -(1 << bit)
            changed.view(-1).view(integers)[place] ^= flip
            assert tensor_checksum(changed) != checksum, (place, bit)


def test_order_shape_sign_and_dtype_count_but_layout_does_not() -> None:
    torch.manual_seed(0)
    tensor = torch.randn(300, 700)
    checksum = tensor_checksum(tensor)
    assert tensor_checksum(tensor.T.contiguous().T) == checksum
    assert tensor_checksum(torch.nn.Parameter(tensor)) == checksum
    assert tensor_checksum(tensor.flip(0)) != checksum
    assert tensor_checksum(tensor.roll(2 * WORDS_PER_BLOCK)) != checksum
    assert tensor_checksum(tensor.view(700, 300)) != checksum
    assert tensor_checksum(tensor.double()) != checksum
    # two flipped signs change the words by 2^31 each, which a weak sum would cancel
    for first, second in ((0, 1), (5, 100_000), (0, WORDS_PER_BLOCK)):
        changed = tensor.clone()
        changed.view(-1)[[first, second]] *= -1
        assert tensor_checksum(changed) != checksum
    assert tensor_checksum(torch.zeros(4)) != tensor_checksum(torch.zeros(5))
    assert tensor_checksum(torch.empty(0)) == tensor_checksum(torch.empty(0)) != tensor_checksum(torch.empty(0, 2))


def test_large_tensors_hash_as_the_definition_says() -> None:
    torch.manual_seed(0)
    tensor, other = torch.randn(3 * WORDS_PER_BLOCK + 17), torch.randn(3 * WORDS_PER_BLOCK + 17)
    for values in (tensor, other, tensor[:100], tensor[: 2 * WORDS_PER_BLOCK]):
        state = 0
        for block_sum in _block_sums(values.view(torch.int32)):
            state = (state * _CHAIN + block_sum + 1) % _MODULUS
        assert state == reference_checksum_state(values)


def test_the_engines_precision_decides() -> None:
    torch.manual_seed(0)
    master = torch.randn(64, 64).bfloat16().float()
    engine = {"w": tensor_checksum(master.bfloat16())}
    assert compare_checksums(weight_checksums([("w", master)], torch.bfloat16), engine) == []
    # below bfloat16's resolution of 0.4 %: not a difference for this engine
    assert compare_checksums(weight_checksums([("w", master * (1 + 1e-4))], torch.bfloat16), engine) == []
    assert len(compare_checksums(weight_checksums([("w", master * 1.01)], torch.bfloat16), engine)) == 1


def test_differences_are_named_and_a_tied_head_may_be_absent() -> None:
    embedding, head, other = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
    assert compare_checksums({embedding: "a", other: "b"}, {embedding: "a", head: "a", other: "b"}) == []
    assert compare_checksums({embedding: "a", head: "a"}, {embedding: "a"}) == []
    stale_head = compare_checksums({embedding: "a", other: "b"}, {embedding: "a", head: "old", other: "b"})
    assert stale_head == ["lm_head.weight: learner a, engine old"]
    lines = compare_checksums({embedding: "a", "adapter": "c"}, {embedding: "x", other: "b"})
    assert lines == [
        "adapter: the engine has no such parameter",
        "model.embed_tokens.weight: learner a, engine x",
        "model.norm.weight: the learner has no such parameter",
    ]


def test_a_hundred_megabytes_take_well_under_a_second() -> None:
    tensor = torch.zeros(50_000_000, dtype=torch.bfloat16)
    assert cpu_seconds(lambda: tensor_checksum(tensor)) < 0.5
