"""Loading, the self-check, adapters, weights for engines, checkpoints."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, CohereConfig, FalconH1Config, GptOssConfig, GraniteConfig

from rlhf.config.model import LoraConfig, ModelConfig
from rlhf.models.embedded import resolve_model_path
from rlhf.models.head import HeadSettings
from rlhf.models.loading import head_settings, load_policy, load_tokenizer
from rlhf.models.packing import pack
from rlhf.models.policy import Policy
from rlhf.models.self_check import UnsupportedArchitecture

from .conftest import SIZES, save_checkpoint

LORA = LoraConfig(rank=3, alpha=12)


def logits(model, sequences) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([model(torch.tensor([s.prompt_ids + s.completion_ids])).logits[0] for s in sequences])


def with_moved_adapters(checkpoint, family: str, dtype: str = "float32") -> Policy:
    policy = load_policy(ModelConfig(path=checkpoint(family), dtype=dtype, lora=LORA))
    torch.manual_seed(5)
    with torch.no_grad():
        for _, parameter in policy.trainable_parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return policy


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (CohereConfig(**SIZES, logit_scale=0.3), HeadSettings(logit_scale=0.3)),
        (GraniteConfig(**SIZES, logits_scaling=4.0), HeadSettings(logit_scale=0.25)),
    ],
)
def test_scaled_logits_are_known_and_a_forgotten_scale_is_found(tmp_path, sequences, config, expected):
    path = save_checkpoint(config, tmp_path)
    policy = load_policy(ModelConfig(path=path, dtype="float32"))
    assert policy.head == expected == head_settings(config)
    policy.head = HeadSettings()
    with pytest.raises(UnsupportedArchitecture, match=r"ForCausalLM computes other log-probs.*attention: padded"):
        policy.self_check()


def test_a_model_that_passes_no_plan_or_another_mask_is_found(checkpoint, monkeypatch):
    policy = load_policy(ModelConfig(path=checkpoint("llama"), dtype="float32"))
    decoder = policy.causal_lm.get_decoder()
    usual = decoder.forward

    def forgetful(*args, attention_plan=None, **kwargs):
        return usual(*args, **kwargs)

    monkeypatch.setattr(decoder, "forward", forgetful)
    with pytest.raises(UnsupportedArchitecture, match="without a plan"):
        policy.self_check()
    # an architecture with an attention of its own sees the row as one long sequence
    policy.causal_lm.set_attn_implementation("sdpa")
    with pytest.raises(UnsupportedArchitecture, match="computes other log-probs"):
        policy.self_check()


def test_a_broken_model_does_not_pass_as_equal(checkpoint):
    policy = load_policy(ModelConfig(path=checkpoint("llama"), dtype="float32"))
    with torch.no_grad():
        policy.causal_lm.get_decoder().norm.weight.fill_(torch.nan)
    with pytest.raises(UnsupportedArchitecture, match="nan"):
        policy.self_check()


def test_attention_sinks_and_recurrent_layers_are_refused_with_a_remedy(tmp_path, sequences):
    sinks = save_checkpoint(
        GptOssConfig(**SIZES, head_dim=16, num_local_experts=2, num_experts_per_tok=1), tmp_path / "sinks"
    )
    with pytest.raises(UnsupportedArchitecture, match=r"attention sinks.*attention: padded"):
        load_policy(ModelConfig(path=sinks, dtype="float32"))
    hybrid = save_checkpoint(FalconH1Config(**SIZES), tmp_path / "hybrid")
    with pytest.raises(UnsupportedArchitecture, match=r"layers of type hybrid.*attention: padded"):
        load_policy(ModelConfig(path=hybrid, dtype="float32"))
    # the remedy works
    policy = load_policy(ModelConfig(path=sinks, dtype="float32", attention="padded"))
    assert bool(policy(pack(sequences)).logp_N.isfinite().all())


def test_dropout_is_off_and_loading_leaves_the_random_generator_alone(checkpoint, tmp_path, sequences):
    folder = Path(checkpoint("qwen2"))
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | dict(attention_dropout=0.5)))
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    policy = load_policy(ModelConfig(path=str(tmp_path), dtype="float32", lora=LORA), seed=9)
    torch.testing.assert_close(torch.rand(2), expected, rtol=0, atol=0)
    assert policy.training
    batch = pack(sequences)
    torch.testing.assert_close(policy(batch).logp_N, policy(batch).logp_N, rtol=0, atol=0)


def test_adapters_start_from_the_seed_in_float32_on_a_frozen_base(checkpoint):
    def adapters(seed: int) -> dict[str, torch.Tensor]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("rlhf.models.loading.cpu_has_bfloat16_matmul", lambda: True)
            config = ModelConfig(path=checkpoint("llama"), dtype="bfloat16", lora=LORA)
            policy = load_policy(config, seed=seed)
        assert {p.dtype for p in policy.parameters() if not p.requires_grad} == {torch.bfloat16}
        return dict(policy.trainable_parameters())

    one, again, other = adapters(1), adapters(1), adapters(2)
    # two matrices on each of the 7 linear maps of 2 blocks
    assert len(one) == 28 and all(".lora_" in name and p.dtype == torch.float32 for name, p in one.items())
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_bfloat16_on_a_cpu_without_it_is_said(checkpoint, monkeypatch):
    monkeypatch.setattr("rlhf.models.loading.cpu_has_bfloat16_matmul", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.warns(UserWarning, match="dtype: float32"):
        load_policy(ModelConfig(path=checkpoint("llama"), dtype="bfloat16"))


def test_an_adapter_on_the_head_is_refused(checkpoint):
    lora = LoraConfig(rank=2, target_modules=["q_proj", "lm_head"])
    with pytest.raises(ValueError, match="LM head cannot have an adapter"):
        load_policy(ModelConfig(path=checkpoint("qwen2"), dtype="float32", lora=lora))


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_weights_of_a_full_model_have_plain_names_and_no_tied_head(checkpoint, family):
    policy = load_policy(ModelConfig(path=checkpoint(family), dtype="float32"))
    weights = dict(policy.weights())
    own = AutoModelForCausalLM.from_pretrained(checkpoint(family), dtype=torch.float32)
    expected = dict(own.named_parameters())
    assert weights.keys() == expected.keys() and ("lm_head.weight" in weights) == (family == "qwen2")
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    gathered = {name: tensor + 1 for name, tensor in policy.state_dict().items()}
    assert all(torch.equal(tensor, expected[name] + 1) for name, tensor in policy.weights(gathered))


def test_weights_with_adapters_are_the_merged_model_and_the_base_is_untouched(checkpoint, sequences):
    policy = with_moved_adapters(checkpoint, "qwen2")
    base = AutoModelForCausalLM.from_pretrained(checkpoint("qwen2"), dtype=torch.float32)
    before = logits(base, sequences)
    merged = dict(policy.weights())
    base.load_state_dict(merged, strict=True)
    with torch.no_grad():
        found = policy(pack(sequences)).logp_N
    plain = Policy(base, head=HeadSettings(), attention="padded")
    torch.testing.assert_close(plain(pack(sequences)).logp_N, found, rtol=0, atol=2e-5)
    # the adapters matter, or nothing was tested
    assert float((logits(base, sequences) - before).abs().max()) > 0.1
    gathered = policy.state_dict()
    for name, tensor in policy.weights(gathered):
        assert torch.equal(tensor, merged[name])
    original = dict(AutoModelForCausalLM.from_pretrained(checkpoint("qwen2")).named_parameters())
    for name, parameter in policy.causal_lm.named_parameters():
        if ".lora_" not in name:
            assert torch.equal(parameter, original[name.replace(".base_layer.", ".")]), name


def test_merging_into_a_bfloat16_base_rounds_once(checkpoint, monkeypatch):
    monkeypatch.setattr("rlhf.models.loading.cpu_has_bfloat16_matmul", lambda: True)
    policy = with_moved_adapters(checkpoint, "llama", "bfloat16")
    name = "model.layers.1.mlp.down_proj"
    layer = policy.causal_lm.get_submodule(name)
    up, down = layer.lora_B["default"].weight, layer.lora_A["default"].weight
    exact = layer.base_layer.weight.double() + LORA.alpha / LORA.rank * up.double() @ down.double()
    merged = dict(policy.weights())[f"{name}.weight"]
    assert merged.dtype == torch.bfloat16
    # half a unit in the last of bfloat16's 8 bits
    assert bool(((merged.double() - exact).abs() <= exact.abs() * 2**-8).all())


def test_the_reference_under_adapters_is_the_base(checkpoint, sequences):
    policy = with_moved_adapters(checkpoint, "llama")
    batch = pack(sequences)
    base = load_policy(ModelConfig(path=checkpoint("llama"), dtype="float32"))
    expected = base(batch).logp_N
    reference = policy.reference_logps(batch)
    torch.testing.assert_close(reference, expected, rtol=0, atol=1e-5)
    assert not reference.requires_grad
    assert float((policy(batch).logp_N - expected).abs().max()) > 0.05
    with pytest.raises(ValueError, match="load the reference as a second policy"):
        base.reference_logps(batch)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
def test_a_saved_model_loads_as_an_ordinary_one(checkpoint, tmp_path, sequences, family):
    policy = load_policy(ModelConfig(path=checkpoint(family), dtype="float32"))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.1)
    policy.save(tmp_path / "own")
    policy.save(tmp_path / "given", state=policy.state_dict())
    expected = dict(policy.weights())
    for folder in ("own", "given"):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / folder, dtype=torch.float32)
        assert all(torch.equal(parameter, expected[name]) for name, parameter in model.named_parameters())
        assert "rlhf_packed" not in (tmp_path / folder / "config.json").read_text()
        with torch.no_grad():
            ids = torch.tensor([sequences[0].prompt_ids])
            assert bool(model(ids).logits.isfinite().all())


def test_float32_masters_are_saved_in_their_own_precision(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("rlhf.models.loading.cpu_has_bfloat16_matmul", lambda: True)
    policy = load_policy(ModelConfig(path=checkpoint("llama"), dtype="bfloat16"))
    masters = {name: tensor.float() + 1e-4 for name, tensor in policy.state_dict().items()}
    policy.save(tmp_path, state=masters)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert all(torch.equal(parameter, masters[f"model.{name}"]) for name, parameter in model.named_parameters())


def test_saved_adapters_load_with_peft(checkpoint, tmp_path, sequences):
    policy = with_moved_adapters(checkpoint, "qwen2")
    policy.save(tmp_path / "own")
    policy.save(tmp_path / "given", state=policy.state_dict())
    policy.causal_lm.set_attn_implementation("sdpa")
    expected = logits(policy.causal_lm, sequences)
    for folder in ("own", "given"):
        base = AutoModelForCausalLM.from_pretrained(checkpoint("qwen2"), dtype=torch.float32)
        torch.testing.assert_close(
            logits(PeftModel.from_pretrained(base, tmp_path / folder), sequences), expected, rtol=0, atol=1e-5
        )


def test_the_tokenizer_takes_another_chat_template(tmp_path):
    path = "embedded:smollm2-135m-instruct"
    template = tmp_path / "plain.jinja"
    template.write_text("{% for message in messages %}<{{ message.content }}>{% endfor %}")
    usual = load_tokenizer(ModelConfig(path=path))
    changed = load_tokenizer(ModelConfig(path=path, chat_template=str(template)))
    message = [dict(role="user", content="hello")]
    assert changed.apply_chat_template(message, tokenize=False) == "<hello>"
    assert "<|im_start|>user\nhello<|im_end|>" in usual.apply_chat_template(message, tokenize=False)
    with pytest.raises(FileNotFoundError, match="chat_template"):
        load_tokenizer(ModelConfig(path=path, chat_template=str(tmp_path / "missing.jinja")))
    assert Path(resolve_model_path(path)).is_dir()
