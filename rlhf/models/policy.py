"""The policy: a Hugging Face causal LM that takes packed batches and returns losses, not logits.

Body, head and loss run inside one `forward`, because sharded training gathers weights, and mixed precision casts outputs,
only at the border of the wrapped module.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from rlhf.config.model import LoraConfig, ModelConfig
from rlhf.models import attention
from rlhf.models.embedded import resolve_model_path
from rlhf.models.head import HeadSettings, Objective, policy_head, token_statistics
from rlhf.models.packing import PackedBatch, TrainingSequence, pack
from rlhf.models.padded import padded_hidden_states

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# largest difference of a log-prob between the streamed head and the model's own logits that rounding explains
SELF_CHECK_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.5, torch.float16: 0.1}


@dataclass(frozen=True, slots=True)
class PolicyOutput:
    """`loss` (a scalar in float32) carries the gradient; the statistics of the N target tokens are detached."""

    loss: Tensor
    logp_N: Tensor
    entropy_N: Tensor


class Policy(nn.Module):
    """`model` is a transformers causal LM, or a PEFT model around one."""

    def __init__(self, model: PreTrainedModel | PeftModel, *, packed: bool, temperature: float = 1.0) -> None:
        super().__init__()
        self.model = model
        self.packed = packed
        config = self._causal_lm.config.get_text_config()
        scale = getattr(config, "logit_scale", None) or 1.0
        if getattr(config, "logits_scaling", None):
            scale = 1.0 / config.logits_scaling
        softcap = getattr(config, "final_logit_softcapping", None)
        self.head_settings = HeadSettings(temperature=temperature, logit_softcap=softcap, logit_scale=scale)

    @property
    def _causal_lm(self) -> PreTrainedModel:
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    def forward(
        self, batch: PackedBatch, objective: Objective | None = None, *, elementwise: bool = True
    ) -> PolicyOutput:
        """Loss and statistics of the batch's N target tokens.

        `objective(logp_n, entropy_n, rows)` gives the weighted loss of tokens `rows`; elementwise ones take the one-pass
        head, others see all N tokens of the micro-batch at once. Without an objective only statistics are computed.
        """
        hidden_ND = self._hidden_states(batch)
        head = self._causal_lm.get_output_embeddings()
        weight, bias = head.weight, getattr(head, "bias", None)
        if not len(batch.target_N):
            empty = hidden_ND.new_zeros(0, dtype=torch.float32)
            return PolicyOutput(self._zero_loss(hidden_ND, weight), empty, empty)
        if objective is None:
            with torch.no_grad():
                logp_N, entropy_N = token_statistics(hidden_ND, weight, batch.target_N, bias_V=bias, settings=self.head_settings)
            return PolicyOutput(logp_N.new_zeros(()), logp_N, entropy_N)
        if elementwise:
            out = policy_head(hidden_ND, weight, batch.target_N, objective, bias_V=bias, settings=self.head_settings)
            return PolicyOutput(out.loss, out.logp_N, out.entropy_N)
        logp_N, entropy_N = token_statistics(hidden_ND, weight, batch.target_N, bias_V=bias, settings=self.head_settings)
        loss = objective(logp_N, entropy_N, slice(None)).sum()
        return PolicyOutput(loss, logp_N.detach(), entropy_N.detach())

    def _hidden_states(self, batch: PackedBatch) -> Tensor:
        body = self._causal_lm.base_model
        if not self.packed:
            return padded_hidden_states(body, batch)
        output = body(
            input_ids=batch.input_ids_T[None],
            position_ids=batch.position_ids_T[None],
            use_cache=False,
            packed_plan=batch.plan,
        )
        hidden_TD = output.last_hidden_state[0]
        if not len(batch.hidden_index_N):
            return hidden_TD[:1]
        return hidden_TD.index_select(0, batch.hidden_index_N)

    def _zero_loss(self, hidden_ND: Tensor, weight: Tensor) -> Tensor:
        """0, connected to the graph: an empty micro-batch must run the same backward as a full one."""
        return (hidden_ND.float().sum() + weight[:1].float().sum()) * 0.0

    def reference_logps(self, batch: PackedBatch) -> Tensor:
        """Log-probs (N,) of the base model with adapters off. Raises ValueError without adapters: that needs a frozen copy."""
        with torch.no_grad(), self._adapters_off():
            return self(batch).logp_N

    def _adapters_off(self) -> AbstractContextManager:
        if not isinstance(self.model, PeftModel):
            raise ValueError("a fully fine-tuned policy has no adapters to switch off: load a reference policy beside it")
        return self.model.disable_adapter()

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    @torch.no_grad()
    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """The full model for an engine: (Hugging Face name, tensor), a tied LM head left out.

        Adapters are added in float32 to a copy of each weight: merging into the base and back would drift.
        """
        if not isinstance(self.model, PeftModel):
            yield from ((name, parameter.detach()) for name, parameter in self.model.named_parameters())
            return
        merged = {
            id(module.base_layer.weight): module for module in self.model.modules() if isinstance(module, LoraLayer)
        }
        for name, parameter in self._causal_lm.named_parameters():
            if ".lora_" in name or "lora_embedding" in name:
                continue
            plain_name = name.replace(".base_layer.", ".")
            module = merged.get(id(parameter))
            if module is None:
                yield plain_name, parameter.detach()
                continue
            full = parameter.detach().float()
            for adapter in module.active_adapters:
                full = full + module.get_delta_weight(adapter).float()
            yield plain_name, full.to(parameter.dtype)

    def save(self, folder: str | Path, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        """A full model for `AutoModelForCausalLM.from_pretrained`, or an adapter for `PeftModel.from_pretrained`."""
        self.model.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)

    @torch.no_grad()
    def self_check(self) -> None:
        """Compare streamed log-probs with those of the model's own logits on a few tokens.

        Raises ValueError when they differ by more than rounding: an architecture whose head or attention does something
        that this class does not know must not be trained.
        """
        vocabulary = self._causal_lm.get_input_embeddings().weight.shape[0]

        def ids(start: int, count: int) -> tuple[int, ...]:
            return tuple((start + 7 * i) % vocabulary for i in range(count))

        sequences = [TrainingSequence(ids(5, 6), ids(40 + i, 3 + i)) for i in range(2)] + [TrainingSequence(ids(9, 4), ids(3, 4))]
        device = next(self.parameters()).device
        was_training = self.training
        self.eval()
        streamed_N = self(pack(sequences).to(device)).logp_N
        expected = []
        implementation = self._causal_lm.config._attn_implementation
        self._causal_lm.set_attn_implementation("sdpa")
        for sequence in sequences:
            tokens = torch.tensor([sequence.prompt_ids + sequence.completion_ids], device=device)
            logits = self.model(input_ids=tokens, use_cache=False).logits[0].float() / self.head_settings.temperature
            logp = logits.log_softmax(-1)[len(sequence.prompt_ids) - 1 : -1]
            expected.append(logp.gather(1, tokens[0, len(sequence.prompt_ids) :, None])[:, 0])
        self._causal_lm.set_attn_implementation(implementation)
        self.train(was_training)
        worst = float((streamed_N - torch.cat(expected)).abs().max())
        if not worst <= SELF_CHECK_TOLERANCE[next(self.parameters()).dtype]:
            raise ValueError(
                f"{type(self._causal_lm).__name__}: streamed log-probs differ from the model's own logits by {worst:.3g}. Its head or "
                "attention has a step that the packed path does not know; try model.attention: padded and report the architecture"
            )


def load_policy(config: ModelConfig, *, temperature: float = 1.0, seed: int = 0, device: torch.device | str = "cpu") -> Policy:
    """The checkpoint as a policy that scores at `temperature`; `seed` initialises adapters."""
    attention.register()
    packed = config.attention == "packed"
    model = AutoModelForCausalLM.from_pretrained(
        resolve_model_path(config.path),
        revision=config.revision,
        dtype=DTYPES[config.dtype],
        attn_implementation=attention.ATTENTION if packed else "sdpa",
        trust_remote_code=config.trust_remote_code,
    )
    model.to(device)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    if config.lora is not None:
        model = _with_adapters(model, config.lora, seed)
    policy = Policy(model, packed=packed, temperature=temperature)
    policy.self_check()
    return policy


def _with_adapters(model: PreTrainedModel, config: LoraConfig, seed: int) -> PeftModel:
    torch.manual_seed(seed)
    peft_config = PeftLoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=config.target_modules,
        task_type="CAUSAL_LM",
    )
    # adapters stay in float32 (peft's default); their products are cast to the base's dtype
    return get_peft_model(model, peft_config)


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer, with the configured chat template if there is one."""
    tokenizer = AutoTokenizer.from_pretrained(
        resolve_model_path(config.path), revision=config.revision, trust_remote_code=config.trust_remote_code
    )
    if config.chat_template is not None:
        tokenizer.chat_template = Path(config.chat_template).read_text(encoding="utf-8")
    return tokenizer
