"""The memory plan against models that exist: exact parameter counts, and what autograd really keeps."""

import json

import pytest

from rlhf.config.held_memory import NETWORKS, ensemble_numbers
from rlhf.config.memory_plan import (
    HEAD_BLOCK_BYTES,
    HEAD_BLOCK_TOKENS,
    activation_bytes,
    memory_plan,
    micro_batch_tokens,
)
from rlhf.config.model_shapes import PUBLISHED, ModelShape, UnknownShape, find_shape, shape_from_config

SMALL = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 96, "vocab_size": 256, "tie_word_embeddings": True,
}  # fmt: skip


def items(plan):
    return {item.name: item.bytes for item in plan.items}


@pytest.mark.parametrize(
    ("path", "parameters"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 134_515_008),
        ("Qwen/Qwen2.5-0.5B-Instruct", 494_032_768),
        ("Qwen/Qwen2.5-1.5B-Instruct", 1_543_714_304),
        ("Qwen/Qwen2.5-Math-7B", 7_615_616_512),
    ],
)
def test_published_shapes_have_the_published_number_of_parameters(path, parameters):
    assert find_shape(path).parameters == parameters


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "smollm3"])
@pytest.mark.parametrize("is_tied", [True, False])
def test_parameters_are_those_of_the_model_that_transformers_builds(family, is_tied, tmp_path):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(family, **{**SMALL, "tie_word_embeddings": is_tied}, pad_token_id=0)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    config.save_pretrained(tmp_path)
    assert find_shape(str(tmp_path)).parameters == sum(p.numel() for p in model.parameters())


def test_adapter_parameters_are_those_of_peft():
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, LlamaConfig

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**SMALL))
    shape = shape_from_config({**SMALL, "model_type": "llama"})
    for targets in ("all-linear", ["q_proj", "v_proj"]):
        with torch.device("meta"):
            adapted = get_peft_model(model, LoraConfig(r=4, target_modules=targets))
        trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
        assert shape.lora_parameters(4, targets) == trained
        model = adapted.unload()


@pytest.mark.parametrize(("dtype", "b"), [("float32", 4), ("bfloat16", 2)])
@pytest.mark.parametrize("has_checkpointing", [False, True])
def test_activations_are_what_autograd_keeps(dtype, b, has_checkpointing):
    """One more block keeps as many more bytes as the formula says (2 %: statistics of norms and attention)."""
    import torch
    from transformers import LlamaConfig, LlamaModel

    tokens, kept = 32, []
    for layers in (2, 3):
        config = LlamaConfig(**{**SMALL, "num_hidden_layers": layers}, attn_implementation="sdpa")
        model = LlamaModel(config).to(getattr(torch, dtype)).train()
        if has_checkpointing:
            model.gradient_checkpointing_enable()
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        saved: dict[int, torch.UntypedStorage] = {}

        def keep(tensor, saved=saved, weights=weights):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                saved[storage.data_ptr()] = storage
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(input_ids=torch.arange(tokens)[None], use_cache=False)
        kept.append(sum(storage.nbytes() for storage in saved.values()))
    planned = [
        activation_bytes(shape_from_config({**SMALL, "model_type": "llama", "num_hidden_layers": layers}), tokens, b,
                         has_checkpointing)
        for layers in (2, 3)
    ]  # fmt: skip
    assert planned[1] - planned[0] == pytest.approx(kept[1] - kept[0], rel=0.02)


def test_the_states_of_a_full_fine_tuning_take_what_adam_takes(parse):
    shape = PUBLISHED["Qwen/Qwen2.5-0.5B-Instruct"]
    plan = memory_plan(parse("--engine.type", "transformers"), shape)
    p = shape.parameters
    found = items(plan)
    assert found["policy weights"] == found["engine weights"] == 2 * p
    assert found["float32 masters"] == found["gradients"] == 4 * p and found["optimizer state"] == 8 * p
    assert found["gradients of a micro-batch"] == 2 * p
    assert "reference policy" not in found
    assert plan.total_bytes == sum(found.values()) and f"{p:,} parameters, {p:,} trained" in plan.render()


def test_float32_needs_no_masters_and_kl_needs_a_reference(parse):
    shape = PUBLISHED["Qwen/Qwen2.5-0.5B-Instruct"]
    found = items(memory_plan(parse("--model.dtype", "float32", "--algorithm.kl.coefficient", "0.1"), shape))
    assert "float32 masters" not in found and found["reference policy"] == 4 * shape.parameters


def test_adapters_need_no_reference_and_small_states(parse):
    shape = PUBLISHED["Qwen/Qwen2.5-0.5B-Instruct"]
    plan = memory_plan(parse("--model.lora.rank", "8", "--algorithm.kl.coefficient", "0.1"), shape)
    adapters = shape.lora_parameters(8, "all-linear")
    found = items(plan)
    assert found["policy weights"] == 2 * shape.parameters and found["adapters"] == 4 * adapters
    assert found["optimizer state"] == 8 * adapters == 2 * found["gradients"]
    assert "float32 masters" not in found and "gradients of a micro-batch" not in found
    assert "reference policy" not in found and plan.trained_parameters == adapters


def test_a_policy_that_is_never_trained_needs_its_weights_and_a_block():
    from rlhf.config.loading import parse_config
    from rlhf.config.optimistic_actor_critic import OptimisticActorCriticConfig

    arguments = ["--model.path", "Qwen/Qwen2.5-0.5B-Instruct", "--data.type", "arithmetic", "--algorithm.preset"]
    implicit = ["nora_token", "--algorithm.actor.kind", "implicit", "--engine.type", "transformers"]
    shape = PUBLISHED["Qwen/Qwen2.5-0.5B-Instruct"]
    plan = memory_plan(parse_config(OptimisticActorCriticConfig, [*arguments, *implicit]), shape)
    trained = memory_plan(parse_config(OptimisticActorCriticConfig, [*arguments, "nora_token"]), shape)
    found = items(plan)
    assert set(found) == {
        "policy weights", "activations", "LM head", "critic ensemble", "the critic's episodes", "engine weights",
        "engine key-value cache",
    }  # fmt: skip
    assert found["policy weights"] == 2 * shape.parameters and plan.trained_parameters == 0
    assert found["activations"] == items(trained)["activations"] / shape.layers
    assert items(trained)["LM head"] - found["LM head"] == 4 * shape.vocabulary * shape.hidden


@pytest.mark.parametrize("preset", ["nora", "nora_token"])
def test_an_ensemble_is_counted_as_it_is_built(preset):
    import torch

    from rlhf.config.loading import parse_config
    from rlhf.config.optimistic_actor_critic import OptimisticActorCriticConfig
    from rlhf.training.critics import forms, optimistic

    assert len(optimistic.NETWORKS) == NETWORKS
    shape = shape_from_config({**SMALL, "model_type": "llama"})
    config = parse_config(
        OptimisticActorCriticConfig,
        ["--model.path", "some/model", "--data.type", "arithmetic", "--algorithm.preset", preset,
         "--algorithm.ensemble.buffer_gib", "0.5"],
    )  # fmt: skip
    algorithm = config.algorithm
    settings = (algorithm.ensemble, shape.hidden, algorithm.value_bounds, 0)
    embedding_VD = torch.zeros(shape.vocabulary, shape.hidden)
    form = (
        forms.TokenValues(*settings, embedding_VD, lambda batch: torch.empty(0)) if algorithm.ensemble.values_tokens
        else forms.StateValues(*settings, algorithm.actor.trace_decay)
    )  # fmt: skip
    network = form.make_network()
    trained = sum(parameter.numel() for parameter in network.parameters())
    priors = sum(buffer.numel() for buffer in network.buffers())
    assert ensemble_numbers(algorithm.ensemble, shape.hidden) == (trained, priors)
    features = form.token_Ve.nbytes if algorithm.ensemble.values_tokens else 0
    plan = memory_plan(config, shape)
    found = items(plan)
    assert found["critic ensemble"] == 4 * (6 * trained + 3 * priors) + features
    assert found["the critic's episodes"] == plan.host_bytes == 2**29


def test_a_reward_model_is_counted_on_every_rank_where_its_sizes_are_known(parse, tmp_path):
    from transformers import AutoModelForSequenceClassification, LlamaConfig

    config = LlamaConfig(**{**SMALL, "tie_word_embeddings": False}, num_labels=1, pad_token_id=0)
    config.save_pretrained(tmp_path / "rm")
    model = AutoModelForSequenceClassification.from_config(config)
    numel = {name: parameter.numel() for name, parameter in model.named_parameters()}
    functions = f"[{{type: reward_model, path: {tmp_path / 'rm'}}}, {{type: reward_model, path: ./nowhere}}]"
    plan = memory_plan(parse("--rewards.functions", functions), PUBLISHED["Qwen/Qwen2.5-0.5B-Instruct"])
    head = numel.pop("score.weight")
    assert items(plan)["reward model 0"] == 2 * sum(numel.values()) + 4 * head
    assert items(plan)["reward model 1"] == 0
    assert "not counted, its sizes are unknown: ./nowhere does not exist" in plan.render()


def test_the_head_never_holds_the_logits_of_a_batch(parse):
    from rlhf.models.head_block import DEFAULT_BLOCK_BYTES, MIN_DEFAULT_TOKENS

    assert HEAD_BLOCK_BYTES == DEFAULT_BLOCK_BYTES and HEAD_BLOCK_TOKENS == MIN_DEFAULT_TOKENS
    shape = PUBLISHED["Qwen/Qwen2.5-0.5B-Instruct"]
    block = HEAD_BLOCK_BYTES["cpu"]
    found = items(memory_plan(parse("--model.lora.rank", "8", "--batch.tokens_per_micro_batch", "8192"), shape))
    assert found["LM head"] == block + 2 * 8192 * 896 * 2 < 8192 * 151_936 * 2 / 30
    full = items(memory_plan(parse("--batch.tokens_per_micro_batch", "8192"), shape))
    assert full["LM head"] - found["LM head"] == 4 * 151_936 * 896


def test_micro_batches_are_bounded_by_the_budget_the_data_and_the_longest_sample(parse):
    flags = ["--batch.prompts_per_step", "4", "--sampling.samples_per_prompt", "2", "--sampling.max_tokens", "10",
             "--data.max_prompt_tokens", "100"]  # fmt: skip
    assert micro_batch_tokens(parse(*flags, "--batch.tokens_per_micro_batch", "300"), 1) == 300
    assert micro_batch_tokens(parse(*flags), 1) == 4 * (100 + 2 * 10)
    assert micro_batch_tokens(parse(*flags, "--model.attention", "padded"), 1) == 4 * 2 * 110
    assert micro_batch_tokens(parse(*flags, "--batch.minibatches", "2"), 2) == 120
    assert micro_batch_tokens(parse(*flags, "--batch.tokens_per_micro_batch", "16"), 1) == 110


def test_the_cache_of_the_engine(parse):
    shape = ModelShape(8, 3, 2, 1, 4, 16, 32, is_tied=True)
    flags = ["--batch.prompts_per_step", "4", "--sampling.samples_per_prompt", "4", "--sampling.max_tokens", "10",
             "--data.max_prompt_tokens", "6", "--engine.max_num_seqs", "12"]  # fmt: skip
    on_gpu = items(memory_plan(parse(*flags), shape, device="cuda"))["engine key-value cache"]
    assert on_gpu == 12 * 16 * 2 * 3 * 4 * 2  # rows, tokens, keys and values, layers, width, bytes
    assert items(memory_plan(parse(*flags), shape, device="cpu"))["engine key-value cache"] == 1024**3


def test_unknown_shapes_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UnknownShape, match="run `hf download nobody/nothing` first"):
        find_shape("nobody/nothing")
    with pytest.raises(UnknownShape, match=r"has no config\.json"):
        find_shape(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    with pytest.raises(UnknownShape, match="measure the first step"):
        find_shape(str(tmp_path))
    with pytest.raises(UnknownShape, match="does not exist"):
        find_shape("./nowhere")
