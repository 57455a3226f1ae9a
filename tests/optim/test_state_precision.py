"""State that is kept whole in each format: what the dictionary holds, how near it reads, and what is refused."""

import pytest
import torch

from rlhf.optim.buffers import SMALLEST_QUANTIZED, state_buffer
from rlhf.optim.hashing import random_bits_range
from rlhf.optim.quantization import BLOCK
from rlhf.optim.rounding import round_stochastically
from rlhf.optim.state_precision import allocate, read, write

NUMEL = SMALLEST_QUANTIZED + 100
FORMATS = ["float32", "bfloat16", "8bit"]


def made(format, numel=NUMEL, signed=True, name="exp_avg"):
    state = {}
    allocate(state, name, numel, format, "cpu", signed)
    return state


def normal(numel=NUMEL, seed=0):
    return torch.randn(numel, generator=torch.Generator().manual_seed(seed))


def bits(numel=NUMEL, step=1):
    return random_bits_range(3, step, 5, 0, numel, "cpu")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("numel", [0, 10, NUMEL])
def test_new_state_is_zero(format, signed, numel):
    value_N = read(made(format, numel, signed), "exp_avg")
    assert value_N.dtype == torch.float32
    assert torch.equal(value_N, torch.zeros(numel))


def test_what_the_dictionary_holds():
    assert {name: value.dtype for name, value in made("float32").items()} == {"exp_avg": torch.float32}
    half = made("bfloat16")
    assert (set(half), half["exp_avg"].dtype) == ({"exp_avg", "exp_avg_signed"}, torch.bfloat16)
    coded = made("8bit", signed=False)
    assert set(coded) == {"exp_avg", "exp_avg_absmax", "exp_avg_signed"}
    assert (coded["exp_avg"].dtype, coded["exp_avg_absmax"].dtype) == (torch.uint8, torch.float32)
    assert coded["exp_avg_absmax"].shape == (-(-NUMEL // BLOCK),)
    assert coded["exp_avg_signed"] is False


@pytest.mark.parametrize("numel,dtype", [(SMALLEST_QUANTIZED - 1, torch.float32), (SMALLEST_QUANTIZED, torch.uint8)])
def test_small_tensors_stay_float32_in_8_bit_format(numel, dtype):
    assert made("8bit", numel)["exp_avg"].dtype == dtype


def test_allocating_again_leaves_nothing_of_the_old_format():
    state = made("8bit")
    for format in ("bfloat16", "float32"):
        allocate(state, "exp_avg", 10, format, "cpu", True)
        assert state.keys() == made(format, 10).keys()


def test_states_of_one_dictionary_are_apart():
    state = made("8bit")
    allocate(state, "exp_avg_sq", NUMEL, "8bit", "cpu", False)
    write(state, "exp_avg", normal(), bits())
    write(state, "exp_avg_sq", normal() ** 2, bits())
    assert (read(state, "exp_avg") < 0).any() and (read(state, "exp_avg_sq") > 0).all()


def test_float32_is_read_as_the_tensor_itself():
    state = made("float32")
    assert read(state, "exp_avg") is state["exp_avg"]
    kept = state["exp_avg"]
    write(state, "exp_avg", normal(), None)
    assert state["exp_avg"] is kept and torch.equal(kept, normal())
    # changed in place, and written as it is
    read(state, "exp_avg").add_(1)
    write(state, "exp_avg", read(state, "exp_avg"), None)
    assert torch.equal(kept, normal() + 1)


def test_bfloat16_is_rounded_by_the_bits_or_to_nearest():
    state = made("bfloat16")
    write(state, "exp_avg", normal(), bits())
    assert torch.equal(read(state, "exp_avg"), round_stochastically(normal(), bits()).float())
    write(state, "exp_avg", normal(), None)
    assert torch.equal(read(state, "exp_avg"), normal().bfloat16().float())


@pytest.mark.parametrize("signed", [True, False])
def test_8_bits_read_within_a_code(signed):
    state, value_N = made("8bit", signed=signed), normal() if signed else normal() ** 2
    write(state, "exp_avg", value_N, bits())
    torch.testing.assert_close(read(state, "exp_avg"), value_N, rtol=1 / 8, atol=value_N.abs().max() * 2**-17)
    if signed:
        write(state, "exp_avg", value_N, None)
        torch.testing.assert_close(read(state, "exp_avg"), value_N, rtol=1 / 15, atol=value_N.abs().max() * 2**-17)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("signed", [True, False])
def test_buffers_read_the_same(format, signed):
    state = made(format, signed=signed)
    write(state, "exp_avg", normal().abs(), bits())
    assert torch.equal(state_buffer(state, "exp_avg", format, signed).read(0, NUMEL), read(state, "exp_avg"))


@pytest.mark.parametrize("format", FORMATS)
def test_shards_of_whole_blocks_read_as_the_whole(format):
    numel = 4 * SMALLEST_QUANTIZED
    whole, value_N, bits_N = made(format, numel, signed=False), normal(numel) ** 2, bits(numel)
    write(whole, "exp_avg", value_N, bits_N)
    reads = []
    for first, stop in [(0, SMALLEST_QUANTIZED), (SMALLEST_QUANTIZED, numel)]:
        shard = made(format, stop - first, signed=False)
        write(shard, "exp_avg", value_N[first:stop], bits_N[first:stop])
        reads.append(read(shard, "exp_avg"))
    assert torch.equal(torch.cat(reads), read(whole, "exp_avg"))


@pytest.mark.parametrize("format", FORMATS)
def test_it_is_saved_and_loaded_as_tensors_and_numbers(format, tmp_path):
    state = made(format, signed=False)
    write(state, "exp_avg", normal() ** 2, bits())
    torch.save(state, tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    assert torch.equal(read(loaded, "exp_avg"), read(state, "exp_avg"))
    assert all(isinstance(value, (torch.Tensor, bool)) for value in loaded.values())


@pytest.mark.parametrize("format", ["bfloat16", "8bit"])
def test_averages_reach_their_values(format):
    state = made(format, signed=False)
    for step in range(1500):
        write(state, "exp_avg", 0.999 * read(state, "exp_avg") + 0.001, bits(step=step))
    assert abs(read(state, "exp_avg").mean() - (1 - 0.999**1500)) < 0.01


def regression(format, steps, learning_rate):
    """AdamW on least squares with badly scaled inputs, one batch a step; the loss over all rows at the end."""
    generator = torch.Generator().manual_seed(0)
    scale_I = torch.logspace(-1, 1, 64)
    inputs_MI = torch.randn(2048, 64, generator=generator) * scale_I
    true_IO = torch.randn(64, 128, generator=generator) / scale_I[:, None]
    targets_MO = inputs_MI @ true_IO + 0.5 * torch.randn(2048, 128, generator=generator)
    weight_IO, state, numel = torch.zeros_like(true_IO), {}, true_IO.numel()
    allocate(state, "exp_avg", numel, format, "cpu", True)
    allocate(state, "exp_avg_sq", numel, format, "cpu", False)
    for step in range(1, steps + 1):
        rows = torch.randint(2048, (64,), generator=generator)
        grad_IO = inputs_MI[rows].T @ (inputs_MI[rows] @ weight_IO - targets_MO[rows]) / 64
        first_N = 0.9 * read(state, "exp_avg") + 0.1 * grad_IO.view(-1)
        second_N = 0.999 * read(state, "exp_avg_sq") + 0.001 * grad_IO.view(-1) ** 2
        update_N = first_N / (1 - 0.9**step) / ((second_N / (1 - 0.999**step)).sqrt() + 1e-8)
        rate = learning_rate * (1 - step / steps)
        weight_IO = weight_IO * (1 - 0.01 * rate) - rate * update_N.view_as(weight_IO)
        write(state, "exp_avg", first_N, bits(numel, 2 * step))
        write(state, "exp_avg_sq", second_N, bits(numel, 2 * step + 1))
    return (inputs_MI @ weight_IO - targets_MO).square().mean().item()


@pytest.mark.parametrize("steps,learning_rate", [(300, 0.02), (600, 0.2)], ids=["on the way", "near the end"])
def test_adamw_ends_like_adamw_with_float32_state(steps, learning_rate):
    exact = regression("float32", steps, learning_rate)
    for format in ("bfloat16", "8bit"):
        assert regression(format, steps, learning_rate) == pytest.approx(exact, rel=0.02)


def test_other_formats_are_refused():
    with pytest.raises(ValueError, match=r"'exp_avg' cannot be 'int4': choose one of float32, bfloat16, 8bit"):
        made("int4")


@pytest.mark.parametrize("format,dtype", [("bfloat16", "torch.bfloat16"), ("8bit", "torch.uint8")])
def test_second_moments_to_nearest_are_refused(format, dtype):
    state = made(format, signed=False, name="exp_avg_sq")
    with pytest.raises(ValueError, match=f"'exp_avg_sq' is a second moment in {dtype}.*: pass random bits"):
        write(state, "exp_avg_sq", torch.ones(NUMEL), None)
    assert not read(state, "exp_avg_sq").any()


@pytest.mark.parametrize("format", FORMATS)
def test_other_shapes_are_refused(format):
    # one value would be spread over all
    with pytest.raises(ValueError, match=rf"'exp_avg' has shape \({NUMEL},\), and the values \(1,\)"):
        write(made(format), "exp_avg", torch.ones(1), bits(1))


@pytest.mark.parametrize("format", ["bfloat16", "8bit"])
def test_state_of_unknown_codes_is_refused(format):
    state = made(format)
    del state["exp_avg_signed"]
    with pytest.raises(ValueError, match="without exp_avg_signed nobody knows its codes: make it with"):
        read(state, "exp_avg")
    with pytest.raises(ValueError, match="without exp_avg_signed nobody knows its codes: make it with"):
        write(state, "exp_avg", normal(), bits())
