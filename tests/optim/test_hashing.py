"""Random bits as a function: references in plain integers, statistics with 5 sigma bounds, shards, the compiler."""

import itertools
import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf.optim.hashing import (
    bits_key,
    generator,
    keyed_bits,
    mix,
    random_bits,
    random_bits_range,
    tensor_key,
)

KEY = tensor_key("model.layers.0.mlp.up_proj.weight")
COUNT = 1 << 20
WORD = st.integers(0, 2**64 - 1)


def lowbias32(x):
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ x >> shift) * factor % 2**32
    return x ^ x >> 16


def reference_bits(seed, step, key, index):
    state = mix(seed, step, key)
    x = lowbias32(lowbias32(index % 2**32 ^ state % 2**32) ^ index >> 32 ^ state >> 32)
    return x - 2**32 if x >= 2**31 else x


def draws(seed=1, step=1, key=KEY, start=0, count=COUNT):
    return random_bits_range(seed, step, key, start, count, "cpu")


def low_16(bits_N):
    return (bits_N & 0xFFFF).double() / 2**16 + 2**-17


def high_16(bits_N):
    return (bits_N >> 16 & 0xFFFF).double() / 2**16 + 2**-17


def assert_uncorrelated(a_N, b_N):
    # the correlation of independent samples has standard deviation 1 / sqrt(N)
    correlation = torch.corrcoef(torch.stack([a_N, b_N]))[0, 1]
    assert correlation.abs() < 5 / math.sqrt(len(a_N))


@pytest.mark.parametrize(
    "wrapped",
    [
        "module.{}",
        "module.module.{}",
        "_orig_mod.{}",
        "module._orig_mod.{}",
        "_fsdp_wrapped_module.{}",
        "base_model.model.{}",
        "module.base_model.model._orig_mod.{}",
    ],
)
def test_key_ignores_wrappers(wrapped):
    name = "model.layers.3.self_attn.q_proj.weight"
    assert tensor_key(wrapped.format(name)) == tensor_key(name)


def test_key_ignores_wrappers_inside_a_name():
    inside = "model.layers.3._fsdp_wrapped_module._checkpoint_wrapped_module._orig_mod.self_attn.q_proj.weight"
    assert tensor_key(inside) == tensor_key("model.layers.3.self_attn.q_proj.weight")


def test_key_keeps_names_that_only_look_like_wrappers():
    names = ["a.weight", "my_module.a.weight", "modules.a.weight", "base_model.a.weight", "a.module"]
    assert len({tensor_key(name) for name in names}) == len(names)


def test_key_is_fixed_and_has_64_bits():
    # as `printf weight | b2sum -l 64` prints it
    assert tensor_key("weight") == 0x467271DC3E2EE084
    keys = [tensor_key(f"layers.{index}.weight") for index in range(1000)]
    assert len(set(keys)) == 1000
    assert max(keys) >> 63 == 1 and min(keys) >= 0


def test_mix_is_splitmix64_for_one_value():
    # SplitMix64 seeded with s gives the finaliser of s + 0x9E3779B97F4A7C15; its first output for seed 1234567
    assert mix(1234567 ^ 0x9E3779B97F4A7C15) == 6457827717110365317


def test_mix_depends_on_order_count_and_all_bits():
    values = [mix(), mix(0), mix(0, 0), mix(1, 2), mix(2, 1), mix(1, 2, 0)]
    assert len(set(values)) == len(values)
    assert mix(-1) == mix(2**64 - 1)


@given(st.lists(WORD, min_size=1, max_size=4), st.data())
def test_mix_changes_with_any_bit(values, data):
    changed = list(values)
    changed[data.draw(st.integers(0, len(values) - 1))] ^= 1 << data.draw(st.integers(0, 63))
    assert mix(*changed) != mix(*values)
    assert 0 <= mix(*values) < 2**64


def test_mix_flips_half_of_the_bits():
    rng = random.Random(0)
    flips = [0] * 64
    trials = 4000
    for _ in range(trials):
        seed, step, key = (rng.getrandbits(64) for _ in range(3))
        difference = mix(seed, step, key) ^ mix(seed, step + 1, key)
        for bit in range(64):
            flips[bit] += difference >> bit & 1
    # standard deviation 0.5 / sqrt(4000) = 0.8 %
    assert all(abs(count / trials - 0.5) < 0.04 for count in flips)


@given(WORD, st.integers(0, 2**40), WORD, st.lists(st.integers(0, 2**50), min_size=1, max_size=20))
def test_bits_against_plain_integers(seed, step, key, indices):
    bits_N = random_bits(seed, step, key, torch.tensor(indices))
    assert bits_N.dtype == torch.int32
    assert bits_N.tolist() == [reference_bits(seed, step, key, index) for index in indices]


@pytest.mark.parametrize("start", [0, 2**31 - 60, 2**32 - 60, 3 * 2**31 - 60, 2**40 + 5])
@pytest.mark.parametrize("numel", [0, 1, 100])
def test_range_is_the_bits_of_its_indices(start, numel):
    bits_N = random_bits_range(7, 3, KEY, start, numel, "cpu")
    assert torch.equal(bits_N, random_bits(7, 3, KEY, torch.arange(start, start + numel)))
    assert bits_N.dtype == torch.int32


@given(st.integers(0, 2**33), st.lists(st.integers(0, 1000), min_size=2, max_size=6))
def test_shards_have_the_bits_of_the_whole(start, cuts):
    cuts = sorted(cuts)
    whole = draws(start=start + cuts[0], count=cuts[-1] - cuts[0])
    shards = [draws(start=start + first, count=stop - first) for first, stop in itertools.pairwise(cuts)]
    assert torch.equal(torch.cat(shards), whole)


def test_global_generator_is_left_alone():
    before = torch.get_rng_state()
    draws(count=100)
    torch.randperm(10, generator=generator(1, 2, 3))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("part", [low_16, high_16])
@pytest.mark.parametrize("step", [0, 1, 12345])
def test_moments_are_those_of_the_uniform_distribution(part, step):
    uniform = part(draws(step=step))
    assert abs(uniform.mean() - 0.5) < 5 * math.sqrt(1 / 12 / COUNT)
    # the variance of (u - 1/2)^2 is 1/180
    assert abs(uniform.var() - 1 / 12) < 5 * math.sqrt(1 / 180 / COUNT)


def test_every_bit_is_balanced_and_independent_of_the_others():
    bits_N = draws()
    planes = torch.stack([(bits_N >> bit & 1).double() for bit in range(32)])
    assert (planes.mean(1) - 0.5).abs().max() < 5 * 0.5 / math.sqrt(COUNT)
    correlations = torch.corrcoef(planes) - torch.eye(32, dtype=torch.double)
    assert correlations.abs().max() < 5 / math.sqrt(COUNT)


@pytest.mark.parametrize("part", [low_16, high_16])
def test_histogram_is_flat(part):
    bins, expected = 4096, COUNT / 4096
    counts = torch.histc(part(draws(step=3)), bins, 0, 1)
    chi_square = ((counts - expected) ** 2 / expected).sum()
    # mean and standard deviation of chi-square with 4095 degrees of freedom
    assert abs(chi_square - (bins - 1)) < 5 * math.sqrt(2 * (bins - 1))


@pytest.mark.parametrize("lag", [1, 2, 3, 16, 256, 576, 4096])
def test_elements_are_independent_of_their_neighbours(lag):
    uniform = low_16(draws())
    assert_uncorrelated(uniform[:-lag], uniform[lag:])


def test_pairs_of_neighbours_fill_the_square():
    pairs = low_16(draws(step=9)).view(-1, 2)
    cells = (pairs * 32).long()
    counts = torch.bincount(cells[:, 0] * 32 + cells[:, 1], minlength=1024).double()
    expected = len(pairs) / 1024
    assert abs(((counts - expected) ** 2 / expected).sum() - 1023) < 5 * math.sqrt(2 * 1023)


@pytest.mark.parametrize("part", [low_16, high_16])
@pytest.mark.parametrize(
    "other", [dict(step=2), dict(step=1001), dict(seed=2), dict(key=KEY + 1), dict(key=tensor_key("other"))]
)
def test_steps_seeds_and_tensors_are_independent(part, other):
    assert_uncorrelated(part(draws()), part(draws(**other)))


def test_tensor_halves_beyond_32_bits_of_index_are_independent():
    assert_uncorrelated(low_16(draws()), low_16(draws(start=1 << 32)))


def test_one_element_over_steps_and_tensors():
    steps = 4000
    series = torch.cat([draws(step=step, start=17, count=1) for step in range(steps)])
    keys = torch.cat([draws(key=key, start=17, count=1) for key in range(steps)])
    for bits_N in (series, keys):
        uniform = low_16(bits_N)
        assert abs(uniform.mean() - 0.5) < 5 * math.sqrt(1 / 12 / steps)
        assert_uncorrelated(uniform[:-1], uniform[1:])


def test_generator_is_a_function_of_its_arguments():
    orders = [
        tuple(torch.randperm(50, generator=generator(*arguments)).tolist())
        for arguments in [(1, 2, 3), (1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4), (2**64 - 1, 2**63, KEY)]
    ]
    assert orders[0] == orders[1]
    assert len(set(orders)) == 5
    assert generator(1, 2, 3).device.type == "cpu"


@pytest.mark.slow
def test_compiled_bits_are_the_same_at_every_step():
    compiled = torch.compile(keyed_bits, fullgraph=True)
    called_whole = torch.compile(random_bits)
    for step, numel in itertools.product(range(4), (1, 17, 5003)):
        index_N = torch.arange(numel) + 2**32 - 9
        expected = random_bits(1, step, KEY, index_N)
        assert torch.equal(compiled(bits_key(1, step, KEY), index_N), expected)
        assert torch.equal(called_whole(1, step, KEY, index_N), expected)


@pytest.mark.gpu
def test_gpu_has_the_same_bits():
    index_N = torch.arange(2**32 - 1000, 2**32 + 100_000)
    expected = random_bits(1, 2, KEY, index_N)
    assert torch.equal(random_bits(1, 2, KEY, index_N.cuda()).cpu(), expected)
    assert torch.equal(random_bits_range(1, 2, KEY, 2**32 - 1000, 101_000, "cuda").cpu(), expected)
    compiled = torch.compile(keyed_bits, fullgraph=True)
    assert torch.equal(compiled(bits_key(1, 2, KEY), index_N.cuda()).cpu(), expected)
