"""Rounding to bfloat16 against torch's own conversion and exact fractions; split weights bit for bit."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf.optim.hashing import bits_key, keyed_bits, random_bits_range, tensor_key
from rlhf.optim.rounding import join8, join16, round_stochastically, split8, split16

LARGEST = torch.finfo(torch.bfloat16).max
EDGES = [
    0x00000000,  # zero
    0x00000001,  # smallest subnormal
    0x00007FFF, 0x00008000, 0x00008001,  # around half of the smallest bfloat16
    0x007FFFFF, 0x00800000,  # largest subnormal, smallest normal
    0x3F800000, 0x3F808000, 0x3F818000,  # one, and two ties next to it
    0x3FFF8000, 0x3FFFFFFF,  # rounding carries into the exponent
    0x7F7F0000, 0x7F7F0001, 0x7F7F7FFF,  # largest bfloat16, and what rounds to it
    0x7F7F8000, 0x7F7FFFFF,  # finite, with infinity as the nearest
    0x7F800000,  # infinity
]  # fmt: skip
NANS = [0x7F800001, 0x7FC00000, 0x7FC12345, 0x7FFF8000, 0x7FFFFFFF]


def from_bits(patterns):
    raw = torch.tensor(patterns, dtype=torch.int64)
    return torch.cat([raw, raw + 2**31]).to(torch.int32).view(torch.float32)


def raw(value_N):
    return value_N.view(torch.int32 if value_N.dtype == torch.float32 else torch.int16)


def assert_same_bits(left_N, right_N):
    assert left_N.dtype == right_N.dtype
    assert torch.equal(raw(left_N), raw(right_N))


def random_floats(count, seed=0):
    """All exponents and both signs, no NaN."""
    generator = torch.Generator().manual_seed(seed)
    value_N = torch.randint(-(2**31), 2**31, (count,), generator=generator).to(torch.int32).view(torch.float32)
    return value_N[~value_N.isnan()]


def bits(count, step=1):
    return random_bits_range(3, step, tensor_key("weight"), 0, count, "cpu")


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=30), st.integers(0, 1000))
def test_rounded_values_are_neighbours(values, step):
    value_N = torch.tensor(values)
    rounded_N = round_stochastically(value_N, bits(len(values), step))
    toward_zero_N = (raw(value_N) & -0x10000).view(torch.float32)
    away_N = (raw(toward_zero_N) + 0x10000).view(torch.float32)
    inside = value_N.isfinite()
    is_neighbour_N = (rounded_N == toward_zero_N) | (rounded_N == away_N)
    assert is_neighbour_N[inside].all()
    assert torch.equal(rounded_N[~inside].float(), value_N[~inside])
    assert torch.equal(rounded_N.signbit(), value_N.signbit())


def test_values_that_bfloat16_has_stay():
    value_N = random_floats(100_000).bfloat16()
    assert_same_bits(round_stochastically(value_N.float(), bits(len(value_N))), value_N)


@pytest.mark.parametrize("value", [1.001, -0.02003, 3.1e-39, -1e-42, 1.99999, 6.02e23])
def test_mean_is_right(value):
    count = 1 << 20
    value_N = torch.full((count,), value)
    rounded_N = round_stochastically(value_N, bits(count)).double()
    below, above = rounded_N.min(), rounded_N.max()
    fraction = (value_N[0].double() - below) / (above - below)
    deviation = (above - below) * math.sqrt(fraction * (1 - fraction) / count)
    assert below < value < above
    assert abs(rounded_N.mean() - value_N[0].double()) < 4 * deviation


def test_each_fraction_is_met_exactly_by_all_noise():
    # over all 2^16 values of the noise, the number rounded up is the lower half of the bits
    noise_N = torch.arange(1 << 16, dtype=torch.int32)
    for low in (0, 1, 0x1234, 0x8000, 0xFFFF):
        value_N = torch.full((1 << 16,), 0x3F800000 + low, dtype=torch.int32).view(torch.float32)
        assert (round_stochastically(value_N, noise_N) > 1).sum() == low


def test_only_the_low_16_bits_count():
    value_N, bits_N = random_floats(10_000), bits(10_000)[: len(random_floats(10_000))]
    assert_same_bits(round_stochastically(value_N, bits_N), round_stochastically(value_N, bits_N & 0xFFFF))


def test_infinity_and_nan_pass_whatever_the_noise():
    value_N = from_bits([0x7F800000, *NANS])
    for noise in (0, 0x7FFF, 0xFFFF, -1):
        rounded_N = round_stochastically(value_N, torch.full_like(raw(value_N), noise))
        assert torch.equal(rounded_N.isnan(), value_N.isnan())
        assert torch.equal(rounded_N[~rounded_N.isnan()].float(), value_N[~value_N.isnan()])


def test_overflows_only_where_rounding_to_nearest_does():
    value_N = torch.cat([from_bits(EDGES), torch.linspace(LARGEST * 0.99, torch.finfo(torch.float32).max, 10_001)])
    for noise in (0, 0x7FFF, 0x8000, 0xFFFF):
        rounded_N = round_stochastically(value_N, torch.full_like(raw(value_N), noise))
        assert torch.equal(rounded_N.isinf(), value_N.bfloat16().isinf())


def test_small_steps_add_up():
    # a thousand steps of -1e-6 at 0.02, where neighbours are 1.2e-4 apart: rounding to nearest would not move at all
    weight_N = torch.full((2000,), 0.02).bfloat16()
    start, steps = weight_N.double(), 1000
    for step in range(steps):
        weight_N = round_stochastically(weight_N.float() - 1e-6, bits(len(weight_N), step))
    drift_N = weight_N.double() - start
    # each step rounds with a variance of at most 1e-6 of a gap: the mean of 2000 weights has 3.5e-4 / sqrt(2000)
    assert abs(drift_N.mean() + 1e-6 * steps) < 5 * 3.5e-4 / math.sqrt(len(weight_N))


def test_average_of_squares_reaches_its_value():
    # to nearest, the average of ones with b2 = 0.999 sticks at 0.25
    steps, average_N, nearest_N = 5000, torch.zeros(2000).bfloat16(), torch.zeros(2000).bfloat16()
    for step in range(steps):
        average_N = round_stochastically(average_N.float() * 0.999 + 0.001, bits(2000, step))
        nearest_N = (nearest_N.float() * 0.999 + 0.001).bfloat16()
    assert nearest_N.max() == 0.25
    assert abs(average_N.double().mean() - (1 - 0.999**steps)) < 1e-3


def test_split16_is_exact():
    for value_N in (from_bits(EDGES), random_floats(1_000_000)):
        high_N, low_N = split16(value_N)
        assert (high_N.dtype, low_N.dtype) == (torch.bfloat16, torch.int16)
        assert_same_bits(join16(high_N, low_N), value_N)


def test_split16_keeps_the_nearest_bfloat16():
    value_N = torch.cat([from_bits(EDGES), random_floats(1_000_000)])
    differs_N = raw(split16(value_N)[0]) != raw(value_N.bfloat16())
    # ties go away from zero here, to even there
    assert (raw(value_N)[differs_N] & 0xFFFF == 0x8000).all()
    assert differs_N.float().mean() < 1e-4


def test_nan_stays_nan_with_its_sign():
    value_N = from_bits(NANS)
    high_N, low_N = split16(value_N)
    joined_N = join16(high_N, low_N)
    assert high_N.isnan().all() and joined_N.isnan().all()
    assert torch.equal(raw(joined_N), raw(value_N) & -0x10000 | 0x00400000)
    assert_same_bits(join8(*split8(value_N)), joined_N)
    # the NaN that arithmetic makes is restored bit for bit
    assert_same_bits(joined_N[1:2], value_N[1:2])


def test_split8_error():
    value_N = torch.cat([from_bits(EDGES), random_floats(1_000_000)])
    value_N = value_N[value_N.isfinite()]
    high_N, low_N = split8(value_N)
    assert (high_N.dtype, low_N.dtype) == (torch.bfloat16, torch.int8)
    assert_same_bits(high_N, split16(value_N)[0])
    error_N = (join8(high_N, low_N).double() - value_N.double()).abs()
    is_normal_N = value_N.abs() >= torch.finfo(torch.float32).tiny
    assert (error_N[is_normal_N] <= 2**-16 * value_N[is_normal_N].double().abs()).all()
    assert error_N[~is_normal_N].max() <= 2**-142


def test_split8_keeps_infinity_and_is_stable():
    value_N = torch.cat([from_bits(EDGES), random_floats(100_000)])
    joined_N = join8(*split8(value_N))
    assert torch.equal(joined_N.isinf(), value_N.isinf())
    # a second round changes nothing: reading and writing without a step does not drift
    assert_same_bits(join8(*split8(joined_N)), joined_N)


@pytest.mark.parametrize("split,join", [(split16, join16), (split8, join8)])
def test_split_of_a_strided_tensor(split, join):
    value_MN = torch.randn(6, 10)[:, ::2]
    high_MN, low_MN = split(value_MN)
    assert torch.equal(join(high_MN, low_MN), join(*split(value_MN.contiguous())))


def test_floats_of_all_sizes_split_exactly():
    # an odd stride passes through all exponents and all lower halves
    raw_N = torch.arange(-(2**31), 2**31, 1023).to(torch.int32)
    value_N = raw_N.view(torch.float32)
    is_nan_N = value_N.isnan()
    high_N, low_N = split16(value_N)
    expected_N = torch.where(is_nan_N, raw_N & -0x10000 | 0x00400000, raw_N)
    assert torch.equal(raw(join16(high_N, low_N)), expected_N)
    assert torch.equal(high_N.isnan(), is_nan_N)


@pytest.mark.slow
def test_compiled_results_have_the_same_bits():
    value_N = torch.cat([from_bits(EDGES), random_floats(5003)])
    index_N, key_2 = torch.arange(len(value_N)), bits_key(1, 2, 3)

    def round_by_index(value_N, key_2, index_N):
        return round_stochastically(value_N, keyed_bits(key_2, index_N))

    compiled = torch.compile(round_by_index, fullgraph=True)(value_N, key_2, index_N)
    assert_same_bits(compiled, round_by_index(value_N, key_2, index_N))
    for split, join in ((split16, join16), (split8, join8)):
        parts = split(value_N)
        for part_N, compiled_N in zip(parts, torch.compile(split, fullgraph=True)(value_N), strict=True):
            assert torch.equal(part_N.view(compiled_N.dtype), compiled_N)
        assert_same_bits(torch.compile(join, fullgraph=True)(*parts), join(*parts))


@pytest.mark.gpu
def test_gpu_has_the_same_bits():
    value_N = torch.cat([from_bits(EDGES), random_floats(100_000)])
    bits_N = bits(len(value_N))
    assert_same_bits(round_stochastically(value_N.cuda(), bits_N.cuda()).cpu(), round_stochastically(value_N, bits_N))
    for split, join in ((split16, join16), (split8, join8)):
        high_N, low_N = split(value_N.cuda())
        assert_same_bits(high_N.cpu(), split(value_N)[0])
        assert_same_bits(join(high_N, low_N).cpu(), join(*split(value_N)))
