"""Log-probs of candidates against the full softmax, and their gradients against autograd through it."""

import pytest
import torch

from rlhf.models import candidate_head
from rlhf.models.candidate_head import candidate_statistics, likely_candidates
from rlhf.models.head import HeadSettings

VOCABULARY, HIDDEN, ROWS = 50, 8, 7
SETTINGS = [HeadSettings(), HeadSettings(temperature=0.7, logit_scale=0.5, logit_softcap=3.0)]


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((ROWS, HIDDEN), (VOCABULARY, HIDDEN), (VOCABULARY,))
    return tuple(torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes)


def full(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, settings: HeadSettings) -> torch.Tensor:
    logits = (hidden @ weight.t() + bias) * settings.logit_scale
    if settings.logit_softcap is not None:
        logits = settings.logit_softcap * torch.tanh(logits / settings.logit_softcap)
    return (logits / settings.temperature).log_softmax(-1)


@pytest.mark.parametrize("settings", SETTINGS)
def test_values_and_gradients_are_those_of_the_full_softmax(
    settings: HeadSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidate_head, "BLOCK_ROWS", 3)
    ids = torch.tensor([[1, 5, 49, 0]] * ROWS) + 0
    weights = torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours = [tensor.clone().requires_grad_() for tensor in inputs()]
    found = candidate_statistics(ours[0], ours[1], ids, bias_V=ours[2], settings=settings)
    (found.logp_Nm.exp() * weights).sum().backward()
    theirs = [tensor.clone().requires_grad_() for tensor in inputs()]
    logp = full(*theirs, settings)
    (logp.gather(1, ids).exp() * weights).sum().backward()
    assert torch.allclose(found.logp_Nm, logp.gather(1, ids), atol=1e-12)
    assert torch.allclose(found.entropy_N, -(logp.exp() * logp).sum(-1), atol=1e-12)
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.allclose(mine.grad, other.grad, atol=1e-12)


def test_the_likeliest_tokens_and_the_taken_one_once() -> None:
    hidden, weight, bias = inputs()
    logp = full(hidden, weight, bias, HeadSettings())
    taken = torch.tensor([int(logp[0].argmax()), *([3] * (ROWS - 1))])
    found = likely_candidates(hidden, weight, taken, 4, bias_V=bias)
    assert found.id_Nm[:, 0].tolist() == taken.tolist()
    assert torch.equal(found.id_Nm[:, 1:], logp.topk(4).indices)
    assert torch.allclose(found.logp_Nm[:, 0], logp.gather(1, taken[:, None])[:, 0])
    # the likeliest token of the first row is the taken one, and has its place already
    assert found.logp_Nm[0, 1] == -torch.inf
    present = found.logp_Nm.exp().sum(-1)
    distinct = [set(row.tolist()) for row in found.id_Nm]
    assert present.tolist() == pytest.approx([sum(float(logp[r, t].exp()) for t in distinct[r]) for r in range(ROWS)])


@pytest.mark.parametrize("count", [0, VOCABULARY + 1])
def test_impossible_counts_are_refused(count: int) -> None:
    hidden, weight, _ = inputs()
    with pytest.raises(ValueError, match="choose from 1 to its size"):
        likely_candidates(hidden, weight, torch.zeros(ROWS, dtype=torch.long), count)
    with pytest.raises(ValueError, match="candidates of shape"):
        candidate_statistics(hidden, weight, torch.zeros(ROWS + 1, 2, dtype=torch.long))
