"""Does the packed path compute this architecture? Asked once, when a policy is loaded."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from rlhf.models.packing import TrainingSequence, pack
from rlhf.models.plain_path import plain_statistics, using_attention

if TYPE_CHECKING:
    from rlhf.models.policy import Policy

# (largest, mean) difference of log-probs in nats that rounding explains. In half precision the model's own attention
# implementations differ by more than a nat on improbable tokens, which would hide what is looked for: the check runs
# in float32
TOLERANCE = {torch.float64: (1e-8, 1e-9), torch.float32: (5e-3, 1e-3)}
# lengths of (prompt, completions): shared prompts, a lone one, a completion of one token
SHAPES = ((5, (4, 2, 1)), (3, (6,)), (2, (3, 3)))


class UnsupportedArchitecture(ValueError):
    """The packed path and the model's own forward disagree; the message says by how much and what to do."""


def self_check(policy: "Policy") -> None:
    """Compare the packed path's log-probs with a log-softmax of the model's own logits on a tiny batch.

    Catches what the packed path does not know: unusual scaling of logits, state that runs from token to token,
    attention that does not go through transformers' interface. Does nothing for the padded path, which is the model's
    own forward. Raises UnsupportedArchitecture.
    """
    if policy.attention == "padded":
        return
    model = policy.causal_lm
    name = type(model).__name__
    advice = "set `attention: padded` in the model section"
    batch = pack(_sequences(policy.config.get_text_config().vocab_size)).to(model.device)
    was_training = policy.training
    policy.eval()
    try:
        with torch.no_grad(), at_least_float32(model):
            dtype = model.dtype
            with using_attention(model, "eager"):
                expected = plain_statistics(model, batch, policy.head.temperature).logp_N
            try:
                packed = policy(batch).logp_N
            except (TypeError, ValueError) as error:
                raise UnsupportedArchitecture(f"{name} cannot run packed batches: {error}; {advice}") from error
    finally:
        policy.train(was_training)
    difference = (packed - expected).abs()
    largest, mean = TOLERANCE[dtype]
    # written so that NaN fails
    if not (difference.max() <= largest and difference.mean() <= mean):
        raise UnsupportedArchitecture(
            f"{name} computes other log-probs packed than plain: they differ by up to {difference.max():.3g} nats, "
            f"{difference.mean():.3g} on average ({dtype} explains {largest:g} and {mean:g}). "
            "Either it scales its logits in a way that the streamed head does not know, or its attention is unusual; "
            f"{advice}"
        )


@contextmanager
def at_least_float32(model: torch.nn.Module) -> Iterator[None]:
    """Half-precision weights and buffers widened to float32 and back, which changes no bit of them.

    The memory is there: it is less than the float32 masters and optimizer state that full fine-tuning adds later.
    """
    halves = (torch.float16, torch.bfloat16)
    narrow = [(t, t.dtype) for t in (*model.parameters(), *model.buffers()) if t.dtype in halves]
    for tensor, _ in narrow:
        tensor.data = tensor.data.float()
    try:
        yield
    finally:
        for tensor, dtype in narrow:
            tensor.data = tensor.data.to(dtype)


def _sequences(vocabulary: int) -> list[TrainingSequence]:
    """Fixed, scattered token ids."""
    state = 1
    sequences = []

    def draw(count: int) -> tuple[int, ...]:
        nonlocal state
        ids = []
        for _ in range(count):
            state = (state * 48_271) % 2_147_483_647  # Park and Miller's generator
            ids.append(state % vocabulary)
        return tuple(ids)

    for prompt_length, completions in SHAPES:
        prompt = draw(prompt_length)
        sequences += [TrainingSequence(prompt, draw(length)) for length in completions]
    return sequences
