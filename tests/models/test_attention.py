"""Packed attention against a dense mask over the whole row."""

import pytest
import torch

import rlhf.models.attention as attention
import rlhf.models.attention_plan as attention_plan
from rlhf.models import varlen
from rlhf.models.attention import AttentionSettings, packed_attention
from rlhf.models.attention_plan import Segment

SEGMENTS = [
    Segment(0, 9),  # a prompt and two completions
    Segment(9, 5, 0, 9),
    Segment(14, 1, 0, 9),
    Segment(15, 30),  # alone
    Segment(45, 3),  # a short prompt, a long completion
    Segment(48, 40, 45, 3),
]
LENGTH = 88


def visible(segments: list[Segment], length: int, window: int | None) -> torch.Tensor:
    """(T, T): whether a token sees another, from the definition."""
    mask = torch.zeros(length, length, dtype=torch.bool)
    for segment in segments:
        keys = [*range(segment.prefix_start, segment.prefix_start + segment.prefix_length)]
        for token in range(segment.start, segment.start + segment.length):
            keys.append(token)
            mask[token, keys if window is None else keys[-window:]] = True
    return mask


def dense(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, settings: AttentionSettings
) -> torch.Tensor:
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(2, 3) * settings.scaling
    if settings.softcap is not None:
        scores = settings.softcap * torch.tanh(scores / settings.softcap)
    return (scores.masked_fill(~mask, -torch.inf).softmax(-1) @ value).transpose(1, 2)


def make_inputs(heads: int, key_heads: int, dtype: torch.dtype, device: str = "cpu") -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, heads, LENGTH, 16), (1, key_heads, LENGTH, 16), (1, key_heads, LENGTH, 16), (1, LENGTH, heads, 16)]
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype) for shape in shapes]
    return [tensor.requires_grad_(index < 3) for index, tensor in enumerate(tensors)]


@pytest.mark.parametrize(("softcap", "window"), [(None, None), (1.5, None), (None, 4), (1.5, 7)])
@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (6, 2), (4, 1)])
@pytest.mark.parametrize("cut", ["usual", "small pieces", "small steps"])
def test_values_and_gradients_equal_a_dense_mask(monkeypatch, heads, key_heads, softcap, window, cut):
    if cut == "small pieces":
        monkeypatch.setattr(attention_plan, "QUERIES_PER_PIECE", 7)
        monkeypatch.setattr(attention_plan, "CHEAP_SCORES", 0)
    if cut == "small steps":
        monkeypatch.setattr(attention, "STEP_BYTES", {"cpu": 1})
    plan = attention_plan.attention_plan(SEGMENTS, LENGTH)
    query, key, value, weight = make_inputs(heads, key_heads, torch.float64)
    settings = AttentionSettings(0.3, softcap, window)
    expected = dense(query, key, value, visible(SEGMENTS, LENGTH, window), settings)
    found, _ = packed_attention(
        torch.nn.Module(),
        query,
        key,
        value,
        None,
        scaling=0.3,
        softcap=softcap,
        sliding_window=window,
        attention_plan=plan,
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    wanted = torch.autograd.grad((expected * weight).sum(), (query, key, value))
    for one, other in zip(torch.autograd.grad((found * weight).sum(), (query, key, value)), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_bfloat16_is_as_close_as_rounding_allows():
    plan = attention_plan.attention_plan(SEGMENTS, LENGTH)
    exact = make_inputs(6, 2, torch.float64)
    half = [tensor.detach().bfloat16().requires_grad_(tensor.requires_grad) for tensor in exact]
    expected = dense(*exact[:3], visible(SEGMENTS, LENGTH, None), AttentionSettings(0.25))
    found, _ = packed_attention(torch.nn.Module(), *half[:3], None, attention_plan=plan)
    assert found.dtype == torch.bfloat16
    assert float((found.double() - expected).detach().abs().max()) < 0.03
    wanted = torch.autograd.grad((expected * exact[3]).sum(), exact[:3])
    for one, other in zip(torch.autograd.grad((found * half[3]).sum(), half[:3]), wanted, strict=True):
        assert torch.nn.functional.cosine_similarity(one.double().flatten(), other.flatten(), dim=0) > 0.999


def test_memory_grows_with_tokens_not_with_their_square(peak_bytes):
    def extra(length: int) -> int:
        plan = attention_plan.attention_plan([Segment(0, length)], length)
        query, key, value = (torch.randn(1, 2, length, 16, requires_grad=True) for _ in range(3))

        def run() -> tuple[torch.Tensor, ...]:
            out, _ = packed_attention(torch.nn.Module(), query, key, value, None, attention_plan=plan)
            return torch.autograd.grad(out.sum(), (query, key, value))

        return peak_bytes(run)

    # the scores of all 4096 keys and queries in both heads would be 134 MB, and four times as many as of 2048
    assert extra(4096) < 134e6 / 3
    assert extra(4096) < 1.5 * extra(2048)


def test_the_plan_wastes_little_on_padding():
    lengths = [3, 200, 64, 70, 66, 500, 12, 300, 41, 64]
    segments, position = [], 0
    for length in lengths:
        segments.append(Segment(position, length))
        position += length
    plan = attention_plan.attention_plan(segments, position)
    padded = sum(bucket.query_RC.numel() * bucket.key_RL.shape[1] for bucket in plan.buckets)
    # half of a causal square is needed, cut into pieces of 256 queries
    assert padded < 1.5 * sum(n * n for n in lengths)
    assert len(plan.buckets) < len(lengths)


@pytest.mark.parametrize(
    "segments", [[Segment(0, 3), Segment(4, 2)], [Segment(0, 3)], [Segment(0, 3), Segment(3, 0), Segment(3, 3)]]
)
def test_gaps_in_the_row_are_refused(segments):
    with pytest.raises(ValueError, match="segments"):
        attention_plan.attention_plan(segments, 6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(s_aux=torch.zeros(4)), "attention sinks"),
        (dict(dropout=0.1), "dropout 0.1"),
        (dict(attention_mask=torch.ones(1, 1, LENGTH, LENGTH)), "attention mask"),
        (dict(is_causal=False), "bidirectional"),
        (dict(attention_plan=None), "without a plan"),
        (dict(attention_plan=attention_plan.attention_plan([Segment(0, 5)], 5)), "plan of 5 tokens"),
    ],
)
def test_what_it_cannot_compute_is_refused(change, message):
    query, key, value, _ = make_inputs(4, 2, torch.float32)
    arguments = dict(attention_mask=None, attention_plan=attention_plan.attention_plan(SEGMENTS, LENGTH)) | change
    with pytest.raises(ValueError, match=message):
        packed_attention(torch.nn.Module(), query, key, value, **arguments)


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 4])
def test_varlen_kernels_equal_a_dense_mask(window):
    plan = attention_plan.attention_plan(SEGMENTS, LENGTH).to("cuda")
    exact = make_inputs(6, 2, torch.float64, "cuda")
    half = [tensor.detach().bfloat16().requires_grad_(tensor.requires_grad) for tensor in exact]
    assert varlen.is_usable(*(tensor[0].transpose(0, 1) for tensor in half[:3]))
    mask = visible(SEGMENTS, LENGTH, window).to("cuda")
    expected = dense(*exact[:3], mask, AttentionSettings(0.25, None, window))
    found, _ = packed_attention(torch.nn.Module(), *half[:3], None, sliding_window=window, attention_plan=plan)
    assert float((found.double() - expected).detach().abs().max()) < 0.03
    wanted = torch.autograd.grad((expected * exact[3]).sum(), exact[:3])
    for one, other in zip(torch.autograd.grad((found * half[3]).sum(), half[:3]), wanted, strict=True):
        assert torch.nn.functional.cosine_similarity(one.double().flatten(), other.flatten(), dim=0) > 0.999


@pytest.mark.gpu
def test_batched_products_equal_a_dense_mask_on_cuda():
    plan = attention_plan.attention_plan(SEGMENTS, LENGTH).to("cuda")
    query, key, value, weight = make_inputs(6, 2, torch.float32, "cuda")
    expected = dense(query, key, value, visible(SEGMENTS, LENGTH, None).to("cuda"), AttentionSettings(0.25))
    found, _ = packed_attention(torch.nn.Module(), query, key, value, None, attention_plan=plan)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    wanted = torch.autograd.grad((expected * weight).sum(), (query, key, value))
    for one, other in zip(torch.autograd.grad((found * weight).sum(), (query, key, value)), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-3)
