"""Stored values that kernels read and write have the bits that plain operations give them, and so has their noise."""

import pytest
import torch

from rlhf.optim.buffers import Plain, Quantized, StochasticallyRounded
from rlhf.optim.compiled_buffers import read_compiled, write_buffer, write_compiled
from rlhf.optim.hashing import random_bits_range, stretch_bits, stretch_key
from rlhf.optim.kernels import can_compile
from rlhf.optim.layout import Piece, Pieces, pieces_of
from rlhf.optim.noise import Noise
from rlhf.optim.quantization import BLOCK

needs_compiler = pytest.mark.skipif(not can_compile("cpu"), reason="torch.compile finds no C++ compiler here")
CPU = torch.device("cpu")


def values(numel, is_signed, seed=0):
    """Of all magnitudes, with zeros."""
    generator = torch.Generator().manual_seed(seed)
    value_N = torch.randn(numel, generator=generator) * torch.logspace(-30, 4, numel)
    value_N[:: max(numel // 5, 2)] = 0
    return value_N if is_signed else value_N.abs()


def quantized(numel, is_signed):
    return Quantized(torch.zeros(numel, dtype=torch.uint8), torch.zeros(-(-numel // BLOCK)), is_signed)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("shift", [0, 300])
def test_bfloat16_is_rounded_by_the_same_chances(shift):
    for numel in (20_000, 257, 2):
        value_N = values(numel, True)
        value_N[0], value_N[-1] = float("inf"), 3.4e38
        noise = Noise(5, 7, pieces_of(torch.zeros(100, 300), "a"), CPU, shift)
        plain, compiled = (StochasticallyRounded(torch.zeros(numel + 8, dtype=torch.bfloat16)) for _ in range(2))
        before_N = value_N.clone()
        write_buffer(plain, 3, 3 + numel, value_N, noise, "moment0", 0)
        write_compiled(compiled, 3, 3 + numel, value_N, noise, "moment0", 0)
        assert torch.equal(plain.values, compiled.values) and torch.equal(value_N, before_N)
        assert torch.equal(read_compiled(compiled, 3, 3 + numel), plain.read(3, 3 + numel))
    nan = StochasticallyRounded(torch.zeros(4, dtype=torch.bfloat16))
    write_compiled(nan, 0, 4, torch.full((4,), float("nan")), noise, "moment0", 0)
    assert nan.values.isnan().all()


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("is_signed", [True, False])
def test_8_bit_codes_are_the_same(is_signed):
    for numel, first in ((20 * BLOCK, 0), (20 * BLOCK, 2 * BLOCK), (BLOCK, 0)):
        value_N = values(numel, is_signed, seed=first)
        noise = Noise(5, 7, pieces_of(torch.zeros(100, 300), "a"), CPU)
        plain, compiled = (quantized(30 * BLOCK, is_signed) for _ in range(2))
        write_buffer(plain, first, first + numel, value_N, noise, "moment1", 9)
        write_compiled(compiled, first, first + numel, value_N, noise, "moment1", 9)
        assert torch.equal(plain.codes, compiled.codes) and torch.equal(plain.absmax, compiled.absmax)
        read_N = read_compiled(compiled, first, first + numel)
        assert torch.equal(read_N.view(torch.int32), plain.read(first, first + numel).view(torch.int32))


def test_what_no_kernel_is_for_is_read_and_written_plainly():
    layout = pieces_of(torch.zeros(1000), "a")
    noise = Noise(1, 2, layout, CPU)
    ragged, plain = quantized(BLOCK + 9, True), quantized(BLOCK + 9, True)
    value_N = values(BLOCK + 9, True)
    write_compiled(ragged, 0, BLOCK + 9, value_N, noise, "moment0", 0)
    write_buffer(plain, 0, BLOCK + 9, value_N, noise, "moment0", 0)
    assert torch.equal(ragged.codes, plain.codes)
    assert torch.equal(read_compiled(ragged, 0, BLOCK + 9), plain.read(0, BLOCK + 9))
    kept = Plain(torch.zeros(5))
    write_compiled(kept, 0, 5, torch.ones(5), noise, "param", 0)
    assert kept.values.tolist() == [1] * 5
    # chances of elements that are no stretch
    rounded = StochasticallyRounded(torch.zeros(4, dtype=torch.bfloat16))
    write_compiled(rounded, 0, 4, torch.ones(4), lambda field, offset, numel: torch.zeros(4, dtype=torch.int32), "p", 0)
    assert rounded.values.tolist() == [1] * 4


def test_noise_follows_the_tensors_of_a_partition():
    """Two pieces with padding between them: bits are those of each tensor, wherever it lies."""
    pieces = (Piece("a", 11, (10, 10), 40, 30, 0), Piece("b", 12, (10, 10), 0, 50, 34))
    partition = Noise(3, 4, Pieces(pieces, tensors=(("a", (10, 10)), ("b", (10, 10)))), CPU)
    bits_N = partition("param", 0, 84)
    a, b = (Noise(3, 4, Pieces((Piece(p.name, p.key, p.shape, 0, 100, 0),)), CPU)("param", 0, 100) for p in pieces)
    assert torch.equal(bits_N[:30], a[40:70]) and torch.equal(bits_N[34:], b[:50]) and not bits_N[30:34].any()
    assert torch.equal(partition("param", 20, 44), bits_N[20:64])
    assert torch.equal(Noise(3, 4, partition.layout, CPU, shift=20)("param", 5, 30), bits_N[25:55])
    assert partition.stretch("param", 20, 44) is None and partition.stretch("param", 30, 5) is None
    assert torch.equal(stretch_bits(partition.stretch("param", 40, 20), bits_N[:20]), bits_N[40:60])
    assert not torch.equal(partition("moment0", 0, 84), bits_N)


@pytest.mark.parametrize("start", [0, 77, (1 << 31) - 50, (1 << 32) - 100, (3 << 32) + 5])
def test_bits_of_a_stretch_are_those_of_its_range(start):
    key_4 = stretch_key(1, 2, 3, start, 100)
    assert torch.equal(stretch_bits(key_4, torch.zeros(100)), random_bits_range(1, 2, 3, start, 100, "cpu"))


def test_a_stretch_does_not_cross_the_lower_half_of_the_index():
    assert stretch_key(1, 2, 3, (1 << 32) - 100, 101) is None
