"""The packed policy against one sequence at a time through the model's own forward."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf.config.model import ModelConfig
from rlhf.models.loading import load_policy
from rlhf.models.packing import TrainingSequence, pack
from rlhf.models.policy import Policy, PolicyOutput

TEMPERATURE = 0.8
FAMILIES = ["llama", "qwen2", "gemma2"]


def load(checkpoint, family: str, **options) -> Policy:
    config = ModelConfig(path=checkpoint(family), dtype="float32", **options)
    return load_policy(config, temperature=TEMPERATURE)


def objective_for(targets: int):
    advantage_N, entropy_weight_N = torch.randn(2, targets, generator=torch.Generator().manual_seed(4))

    def objective(logp_n: torch.Tensor, entropy_n: torch.Tensor, rows: slice) -> torch.Tensor:
        return (0.3 * logp_n).exp() * advantage_N[rows] + 0.1 * entropy_weight_N[rows] * entropy_n

    return objective


def one_at_a_time(
    folder: str, sequences: list[TrainingSequence]
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Log-probs, loss and gradients by parameter name, from one unpadded forward a sequence."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    logps, entropies = [], []
    for sequence in sequences:
        if not sequence.completion_ids:
            continue
        ids = torch.tensor([sequence.prompt_ids + sequence.completion_ids])
        logp_TV = (model(ids).logits[0, len(sequence.prompt_ids) - 1 : -1] / TEMPERATURE).log_softmax(-1)
        logps.append(logp_TV.gather(1, torch.tensor(sequence.completion_ids)[:, None])[:, 0])
        entropies.append(-(logp_TV.exp() * logp_TV).sum(-1))
    logp_N, entropy_N = torch.cat(logps), torch.cat(entropies)
    loss = objective_for(len(logp_N))(logp_N, entropy_N, slice(None)).sum()
    loss.backward()
    return logp_N.detach(), loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


def run(policy: Policy, batch, **options) -> tuple[PolicyOutput, dict[str, torch.Tensor]]:
    policy.zero_grad()
    output = policy(batch, objective_for(batch.targets), **options)
    output.loss.backward()
    return output, {
        name.removeprefix("model."): parameter.grad.clone() for name, parameter in policy.trainable_parameters()
    }


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float = 1e-5) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert float((found[name] - gradient).abs().max()) <= tolerance * max(1.0, float(gradient.abs().max())), name


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_equals_one_at_a_time(checkpoint, sequences, family):
    logp_N, loss, expected = one_at_a_time(checkpoint(family), sequences)
    packed, padded = load(checkpoint, family), load(checkpoint, family, attention="padded")
    variants = {
        "shared": (packed, pack(sequences), {}),
        "unshared": (packed, pack(sequences, share_prompts=False), {}),
        "two passes": (packed, pack(sequences), dict(elementwise=False)),
        "padded": (padded, pack(sequences), {}),
    }
    for policy, batch, options in variants.values():
        output, found = run(policy, batch, **options)
        torch.testing.assert_close(output.logp_N, logp_N, rtol=0, atol=1e-5)
        torch.testing.assert_close(output.loss.detach(), loss, rtol=0, atol=1e-5)
        assert not output.logp_N.requires_grad and not output.entropy_N.requires_grad
        assert_same(found, expected)


def test_statistics_agree_between_all_ways(checkpoint, sequences):
    batch = pack(sequences)
    packed, padded = load(checkpoint, "gemma2"), load(checkpoint, "gemma2", attention="padded")
    expected = padded(batch, objective_for(batch.targets), with_extras=True)
    for output in (
        packed(batch, with_extras=True),
        packed(batch, objective_for(batch.targets), with_extras=True),
        packed(batch, objective_for(batch.targets), elementwise=False, with_extras=True),
    ):
        for found, wanted in zip(output[1:], expected[1:], strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    assert packed(batch).loss == 0 and not packed(batch).loss.requires_grad


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_gradient_checkpointing_changes_nothing(checkpoint, sequences, family):
    batch = pack(sequences)
    output, expected = run(load(checkpoint, family), batch)
    policy = load(checkpoint, family, gradient_checkpointing=True)
    calls = []
    for layer in policy.causal_lm.get_decoder().layers:
        layer.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    again, found = run(policy, batch)
    # each block ran in the forward pass and once more in the backward pass
    assert len(calls) == 2 * policy.config.num_hidden_layers
    assert again.loss == output.loss
    assert_same(found, expected, tolerance=0)


@pytest.mark.parametrize("options", [{}, dict(attention="padded"), dict(lora=dict(rank=2))])
@pytest.mark.parametrize("elementwise", [True, False])
def test_an_empty_batch_touches_every_trained_parameter(checkpoint, options, elementwise):
    policy = load(checkpoint, "qwen2", **options)
    output, gradients = run(policy, pack([]), elementwise=elementwise)
    assert output.loss == 0 and output.logp_N.shape == (0,)
    assert len(gradients) == len(policy.trainable_parameters()) > 0
    assert all(float(gradient.abs().max()) == 0 for gradient in gradients.values())


def test_micro_batches_add_up_to_the_whole(checkpoint, sequences):
    policy = load(checkpoint, "llama")
    advantage = torch.linspace(-1, 1, len(sequences), dtype=torch.float32)

    def accumulate(parts: list[list[int]]) -> list[torch.Tensor]:
        policy.zero_grad()
        for members in parts:
            batch = pack([sequences[index] for index in members])
            weight_N = advantage[members][batch.sequence_N] if members else torch.empty(0)
            policy(batch, lambda logp_n, entropy_n, rows, weight_N=weight_N: weight_N[rows] * logp_n).loss.backward()
        return [parameter.grad.clone() for parameter in policy.parameters()]

    whole = accumulate([list(range(len(sequences)))])
    for one, other in zip(accumulate([[5, 0], [], [1, 2, 3], [4, 7], [6]]), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_the_loss_is_float32_for_a_bfloat16_model_and_under_autocast(checkpoint, sequences):
    batch = pack(sequences)
    exact = load(checkpoint, "qwen2")(batch).logp_N
    half = load_policy(ModelConfig(path=checkpoint("qwen2"), dtype="float32"), temperature=TEMPERATURE).bfloat16()
    output = half(batch, lambda logp_n, entropy_n, rows: logp_n)
    output.loss.backward()
    assert output.loss.dtype == output.logp_N.dtype == torch.float32
    assert all(parameter.grad.dtype == torch.bfloat16 for parameter in half.parameters())
    assert float((output.logp_N - exact).abs().mean()) < 0.1
    single = load_policy(ModelConfig(path=checkpoint("qwen2"), dtype="float32"), temperature=TEMPERATURE)
    for elementwise in (True, False):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = single(batch, lambda logp_n, entropy_n, rows: logp_n, elementwise=elementwise)
        output.loss.backward()
        assert output.loss.dtype == output.logp_N.dtype == torch.float32
        assert all(parameter.grad.dtype == torch.float32 for parameter in single.parameters())
        assert float((output.logp_N - exact).abs().mean()) < 0.1


@pytest.mark.slow
def test_the_demo_model_scores_packed_as_transformers_does():
    from rlhf.models.loading import load_tokenizer

    config = ModelConfig(path="embedded:smollm2-135m-instruct", dtype="float32")
    tokenizer, policy = load_tokenizer(config), load_policy(config)
    prompts = ["What is 2 + 3? Answer with only the number.", "Name a colour."]
    completions = [["5", "The answer is 5.", "2 + 3 = 6"], ["Blue", "Red is a colour that I like."]]
    sequences = [
        TrainingSequence(
            tuple(
                tokenizer.apply_chat_template(
                    [dict(role="user", content=prompt)], add_generation_prompt=True, return_dict=True
                )["input_ids"]
            ),
            (*tokenizer(text)["input_ids"], tokenizer.eos_token_id),
        )
        for prompt, texts in zip(prompts, completions, strict=True)
        for text in texts
    ]
    found = policy(pack(sequences)).logp_N
    model = policy.causal_lm
    model.set_attn_implementation("sdpa")
    expected = []
    with torch.no_grad():
        for sequence in sequences:
            ids = torch.tensor([sequence.prompt_ids + sequence.completion_ids])
            logp_TV = model(ids).logits[0, len(sequence.prompt_ids) - 1 : -1].log_softmax(-1)
            expected.append(logp_TV.gather(1, torch.tensor(sequence.completion_ids)[:, None])[:, 0])
    torch.testing.assert_close(found, torch.cat(expected), rtol=0, atol=2e-4)
