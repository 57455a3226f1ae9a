"""8-bit codes against floats counted one by one, what they promise to Adam's step, and averages."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf.optim import quantization
from rlhf.optim.buffers import NEAREST
from rlhf.optim.hashing import random_bits_range
from rlhf.optim.quantization import (
    BLOCK,
    dequantize_signed,
    dequantize_unsigned,
    quantize_signed,
    quantize_unsigned,
)
from tests.optim.test_implementations import Scratch

SIGNED = (quantize_signed, dequantize_signed)
UNSIGNED = (quantize_unsigned, dequantize_unsigned)
BOTH = pytest.mark.parametrize("quantize,dequantize", [SIGNED, UNSIGNED], ids=["signed", "unsigned"])
LENGTHS = [0, 1, 255, 256, 257, 5000]


def bits(count, step=1, key=5, start=0):
    return random_bits_range(3, step, key, start, count, "cpu")


def normal(count, seed=0):
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def wide(count, decades, seed=0):
    """Positive values, evenly spread over so many decades below 1."""
    return 10 ** (-decades * torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.double))


def assert_same(parts, expected):
    for part, of_expected in zip(parts, expected, strict=True):
        assert torch.equal(part, of_expected)


@BOTH
@pytest.mark.parametrize("numel", LENGTHS)
def test_sizes_and_types(quantize, dequantize, numel):
    value_N = normal(numel).abs()
    codes_N, absmax_K = quantize(value_N, bits(numel))
    assert (codes_N.dtype, absmax_K.dtype) == (torch.uint8, torch.float32)
    assert (codes_N.shape, absmax_K.shape) == ((numel,), (math.ceil(numel / BLOCK),))
    read_N = dequantize(codes_N, absmax_K)
    assert (read_N.dtype, read_N.shape) == (torch.float32, (numel,))
    assert codes_N.nbytes + absmax_K.nbytes == numel + 4 * math.ceil(numel / 256)
    assert torch.equal(absmax_K, torch.tensor([block.max() for block in value_N.split(BLOCK) if len(block)]))


def test_codes_are_floats_counted_one_by_one():
    # two codes may be as near as float32 can tell
    for (quantize, dequantize), c, count in ((SIGNED, 2.0**-15, 128), (UNSIGNED, 2.0**-31, 256)):
        counted = [c * 2.0 ** (code // 8) * (1 + code % 8 / 8) - c for code in range(count)]
        codes_C = torch.tensor([value for value in counted if value <= 1], dtype=torch.double)
        value_B = torch.cat([torch.ones(1), wide(255, 8).float()])
        nearest_B = codes_C[(value_B[:, None].double() - codes_C).abs().argmin(1)]
        torch.testing.assert_close(dequantize(*quantize(value_B)).double(), nearest_B, rtol=1e-6, atol=0)


@pytest.mark.parametrize("scale", [1.0, 3.7e-9, 2.0**126])
def test_errors_are_within_a_sixteenth(scale):
    value_N = torch.cat([torch.ones(1), wide(100_000, 4).float()]) * scale
    for quantize, dequantize in (SIGNED, UNSIGNED):
        read_N = dequantize(*quantize(value_N))
        # half of the widest step, 1/8 of c + the value, and c is at most 2^-15 of twice the largest
        bound_N = value_N / 16 + value_N.max() * 2**-14 / 16
        assert ((read_N - value_N).abs() <= bound_N * 1.0001).all()


@BOTH
def test_zeros_stay_zeros(quantize, dequantize):
    assert torch.equal(dequantize(*quantize(torch.zeros(300), bits(300))), torch.zeros(300))
    # beside large values too, and as new state has them: codes and scales of zero
    value_N = normal(300).abs().masked_fill(torch.arange(300) % 3 == 0, 0)
    assert not dequantize(*quantize(value_N, bits(300)))[::3].any()
    assert torch.equal(dequantize(torch.zeros(300, dtype=torch.uint8), torch.zeros(2)), torch.zeros(300))


def test_signs_stay():
    value_N = normal(10_000)
    read_N = dequantize_signed(*quantize_signed(value_N, bits(10_000)))
    assert (read_N * value_N >= 0).all()
    assert torch.equal(dequantize_signed(*quantize_signed(-value_N, bits(10_000))), -read_N)


def test_a_second_moment_is_never_read_as_zero_nor_below_half():
    tiny = torch.finfo(torch.float32).tiny
    for seed, scale in enumerate([1e-3, 1e-12, 1e-20, 1e-30, 3e-38, 1e30]):
        value_N = (wide(4 * BLOCK, 20, seed) * scale).clamp_min(1e-45).float()
        for noise_N in (None, bits(len(value_N), seed), torch.zeros(len(value_N), dtype=torch.int32)):
            read_N = dequantize_unsigned(*quantize_unsigned(value_N, noise_N))
            assert (read_N > value_N / 2).all()
            # what is raised is below the smallest step, 2^-34 of twice the largest value, or 2^-126
            floor_N = value_N.view(-1, BLOCK).amax(1, keepdim=True).expand(-1, BLOCK).reshape(-1) * 2**-33
            is_small_N = value_N < floor_N.clamp_min(tiny)
            assert (read_N[is_small_N] <= 2 * floor_N[is_small_N].clamp_min(tiny)).all()


def test_no_step_of_adam_explodes():
    # gradients over eight decades in every block, each element with its exact step of 1 or -1
    grad_N = wide(64 * BLOCK, 8).float() * normal(64 * BLOCK).sign()
    count = len(grad_N)
    root_N = (dequantize_unsigned(*quantize_unsigned(0.001 * grad_N**2, bits(count, 2))) / 0.001).sqrt()
    assert (grad_N / root_N).abs().max() < math.sqrt(2)
    # a first moment of nearly nothing may be rounded up, to a step of ordinary size
    step_N = dequantize_signed(*quantize_signed(0.1 * grad_N, bits(count, 1))) / 0.1 / root_N
    assert step_N.abs().max() < 2 * math.sqrt(2)
    is_large_N = grad_N.abs() > grad_N.abs().max() * 1e-4
    assert (step_N[is_large_N] * grad_N.sign()[is_large_N] > 0.8).all()


@BOTH
def test_mean_is_right(quantize, dequantize):
    # each value under noise that is spread evenly over all 32 bits, so that the mean is exact but for the spread
    rows = 1 << 12
    noise_R = (torch.arange(rows) * 2 + 1) * (1 << 19) - (1 << 31)
    value_B = torch.cat([torch.ones(1), torch.full((1,), 3e-7), wide(254, 6).float()])
    noise_N = noise_R.to(torch.int32).roll(rows // 2).repeat_interleave(BLOCK)
    reads = dequantize(*quantize(value_B.repeat(rows), noise_N)).view(rows, BLOCK).double()
    error_B = (reads.mean(0) - value_B.double()).abs()
    widest_step_B = (value_B.double() + 2.0**-15) / 8
    assert (error_B <= widest_step_B / rows + 2**-23 * value_B).all()
    # and it is by chance: most values are read in two ways
    assert (reads.std(0) > 0).float().mean() > 0.9


@BOTH
def test_reading_and_writing_without_a_change_changes_nothing(quantize, dequantize):
    codes_N, absmax_K = quantize((normal(40 * BLOCK) ** 3).abs(), bits(40 * BLOCK))
    read_N = dequantize(codes_N, absmax_K)
    # a block whose largest value was rounded down over a power of two has finer steps now
    has_same_steps_K = read_N.view(-1, BLOCK).amax(1).double().log2().ceil() == absmax_K.double().log2().ceil()
    assert has_same_steps_K.sum() > 20
    for noise_N in (None, bits(40 * BLOCK, 2)):
        again_N = dequantize(*quantize(read_N, noise_N))
        is_same_KB = (again_N == read_N).view(-1, BLOCK)
        assert is_same_KB[has_same_steps_K].all()


@BOTH
def test_noise_that_stands_for_nearest(quantize, dequantize):
    value_N = wide(10_000, 6).float()
    nearest_codes_N = quantize(value_N)[0]
    codes_N = quantize(value_N, torch.full((10_000,), NEAREST, dtype=torch.int32))[0]
    assert (codes_N != nearest_codes_N).float().mean() < 1e-3


@BOTH
@given(data=st.data())
def test_shards_of_whole_blocks_have_the_codes_of_the_whole(quantize, dequantize, data):
    numel = data.draw(st.integers(1, 2000))
    cuts = data.draw(st.lists(st.integers(0, numel // BLOCK), max_size=4))
    bounds = [0, *sorted(cut * BLOCK for cut in cuts), numel]
    value_N = normal(numel, seed=numel).abs()
    whole = quantize(value_N, bits(numel))
    shards = [quantize(value_N[first:stop], bits(stop - first, start=first)) for first, stop in pairwise(bounds)]
    assert_same([torch.cat(parts) for parts in zip(*shards, strict=True)], whole)


@BOTH
def test_chunks_do_not_show(quantize, dequantize, monkeypatch):
    value_N, bits_N = normal(3000).abs(), bits(3000)
    whole = quantize(value_N, bits_N)
    read_N = dequantize(*whole)
    monkeypatch.setattr(quantization, "CHUNK_CPU", 2 * BLOCK)
    assert_same(quantize(value_N, bits_N), whole)
    assert torch.equal(dequantize(*whole), read_N)


@BOTH
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_block_that_is_not_finite_is_read_so(quantize, dequantize, bad):
    value_N = normal(600).abs()
    value_N[300] = bad
    for noise_N in (None, bits(600)):
        is_finite_N = dequantize(*quantize(value_N, noise_N)).isfinite()
        assert not is_finite_N[256:512].any()
        assert is_finite_N[:256].all() and is_finite_N[512:].all()


def test_other_floats_and_strides():
    value_MN = normal(1000).double().view(500, 2)
    expected = quantize_signed(value_MN[:, 0].float().contiguous())
    assert_same(quantize_signed(value_MN[:, 0]), expected)
    assert torch.equal(value_MN, normal(1000).double().view(500, 2))


def average(steps, beta, gradient, quantized, count=4 * BLOCK):
    """The exponential average of `gradient(step)` after so many steps: in 8 bits by `quantized`, and in float64."""
    quantize, dequantize = quantized
    codes, exact_N = quantize(torch.zeros(count)), torch.zeros(count, dtype=torch.double)
    for step in range(steps):
        grad_N = gradient(step)
        exact_N = beta * exact_N + (1 - beta) * grad_N.double()
        codes = quantize(beta * dequantize(*codes) + (1 - beta) * grad_N, bits(count, step))
    return dequantize(*codes).double(), exact_N


def test_average_of_equal_squares_reaches_them():
    # four blocks of squares, each from one size to a thousandth of it
    square_KB = wide(4 * BLOCK, 3).float().view(-1, BLOCK) * torch.tensor([[1.0], [0.09], [1e-12], [1e-20]])
    read_N, exact_N = average(4000, 0.999, lambda step: square_KB.view(-1), UNSIGNED)
    ratio_KB = (read_N / exact_N).view(-1, BLOCK)
    assert (ratio_KB.mean(1) - 1).abs().max() < 0.02
    assert ratio_KB.std(1).max() < 0.1


def test_average_of_equal_squares_sticks_when_rounded_to_nearest():
    codes = quantize_unsigned(torch.zeros(BLOCK))
    for _ in range(4000):
        codes = quantize_unsigned(0.999 * dequantize_unsigned(*codes) + 0.001)
    assert dequantize_unsigned(*codes).max() < 0.1


def test_average_of_random_squares():
    read_N, exact_N = average(2500, 0.999, lambda step: normal(4 * BLOCK, step) ** 2, UNSIGNED)
    ratio_N = read_N / exact_N
    assert abs(ratio_N.mean() - 1) < 0.04
    assert abs((ratio_N**-0.5).mean() - 1) < 0.04


def test_average_of_equal_gradients_reaches_them():
    grad_N = wide(4 * BLOCK, 3).float() * normal(4 * BLOCK).sign()
    read_N, exact_N = average(200, 0.9, lambda step: grad_N, SIGNED)
    ratio_N = read_N / exact_N
    assert abs(ratio_N.mean() - 1) < 0.01
    assert ratio_N.std() < 0.1


def test_a_moment_without_gradients_falls_to_zero():
    # in blocks with others that go on: a moment that stuck at the smallest code would move its weight for ever
    is_dead_N = torch.arange(4 * BLOCK) % 2 == 0

    def gradient(step):
        grad_N = normal(4 * BLOCK, step)
        return grad_N if step == 0 else grad_N.masked_fill(is_dead_N, 0)

    read_N, _ = average(400, 0.9, gradient, SIGNED)
    assert not read_N[is_dead_N].any()
    assert read_N[~is_dead_N].abs().mean() > 0.1


@pytest.mark.slow
@BOTH
def test_compiled_codes_are_the_same(quantize, dequantize):
    value_N, bits_N = (normal(3 * BLOCK + 17) ** 3).abs(), bits(3 * BLOCK + 17)
    value_N[-1] = math.nan
    codes_N, absmax_K = quantize(value_N, bits_N)
    compiled_N, compiled_absmax_K = torch.compile(quantize, fullgraph=True)(value_N, bits_N)
    assert torch.equal(compiled_N[: 3 * BLOCK], codes_N[: 3 * BLOCK])
    assert torch.equal(compiled_absmax_K[:3], absmax_K[:3])
    read_N = torch.compile(dequantize, fullgraph=True)(compiled_N, compiled_absmax_K)
    assert torch.equal(read_N[: 3 * BLOCK], dequantize(codes_N, absmax_K)[: 3 * BLOCK])
    assert not read_N[3 * BLOCK :].isfinite().any()


@BOTH
def test_scratch_is_bounded_on_a_gpu(quantize, dequantize, monkeypatch):
    monkeypatch.setattr(quantization, "CHUNK_CPU", quantization.CHUNK_GPU)
    value_N, bits_N = normal(5 << 20).abs(), bits(5 << 20)
    with Scratch([value_N, bits_N]) as scratch:
        codes_N, absmax_K = quantize(value_N, bits_N)
    assert scratch.peak - codes_N.nbytes - absmax_K.nbytes < 64 << 20
    with Scratch([codes_N, absmax_K]) as scratch:
        read_N = dequantize(codes_N, absmax_K)
    assert scratch.peak - read_N.nbytes < 64 << 20


@pytest.mark.gpu
@BOTH
def test_gpu_has_the_same_codes(quantize, dequantize):
    value_N, bits_N = normal((1 << 22) + 100).abs(), bits((1 << 22) + 100)
    codes = quantize(value_N.cuda(), bits_N.cuda())
    expected = quantize(value_N, bits_N)
    assert_same([part.cpu() for part in codes], expected)
    assert torch.equal(dequantize(*codes).cpu(), dequantize(*expected))
