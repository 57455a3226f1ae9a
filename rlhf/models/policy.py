"""The policy: a Hugging Face causal language model that takes a packed batch and returns a loss and statistics.

Body, LM head and loss all run inside `Policy.forward`: sharded training (FSDP2, ZeRO-3) has the head's weight in one
piece only there.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf.models.attention import PLAN
from rlhf.models.candidate_head import Candidates, candidate_statistics, likely_candidates
from rlhf.models.head import HeadSettings, Objective, TokenStatistics, policy_head, token_statistics
from rlhf.models.lora import base_weights, merged_weights
from rlhf.models.packing import PackedBatch
from rlhf.models.plain_path import plain_statistics

AtHead = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], Objective]
"""(hidden_ND, weight_VD, bias_V), without gradients, to an objective: for losses that depend on the head's input."""


class PolicyOutput(NamedTuple):
    """`loss`: float32 scalar. Statistics as in `TokenStatistics`: float32, detached.

    A tuple, so that the hooks of DDP, FSDP2 and ZeRO-3 find the loss in it. FSDP2 casts a module's outputs to
    `MixedPrecisionPolicy.output_dtype`: leave that unset, or at float32.
    """

    loss: torch.Tensor
    logp_N: torch.Tensor
    entropy_N: torch.Tensor
    collision_N: torch.Tensor | None = None
    max_prob_N: torch.Tensor | None = None
    candidate_logp_Nm: torch.Tensor | None = None


class Reading(NamedTuple):
    """What a frozen policy makes of a batch: final hidden states and log-probs of the targets, and where asked for its
    likeliest tokens."""

    hidden_ND: torch.Tensor
    logp_N: torch.Tensor
    candidates: Candidates | None


class WithoutPrefix(Mapping[str, torch.Tensor]):
    """Tensors under names without their prefix. Each is looked up when it is asked for: it may have to be gathered."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], prefix: str) -> None:
        self.tensors, self.prefix = tensors, prefix

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[self.prefix + name]

    def __iter__(self) -> Iterator[str]:
        return (name.removeprefix(self.prefix) for name in self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


class Policy(nn.Module):
    """`model`: the HF model, or a PeftModel around it. `attention`: packed, or padded (the plain path)."""

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        *,
        head: HeadSettings,
        attention: Literal["packed", "padded"] = "packed",
    ) -> None:
        super().__init__()
        self.model = model
        self.head = head
        self.attention = attention
        # what Accelerate wraps block by block
        self._no_split_modules = getattr(self.causal_lm, "_no_split_modules", None)

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The HF model itself; adapters live inside its layers."""
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    @property
    def config(self) -> object:
        return self.causal_lm.config

    @property
    def has_adapters(self) -> bool:
        return isinstance(self.model, PeftModel)

    def forward(
        self,
        batch: PackedBatch,
        objective: Objective | None = None,
        *,
        elementwise: bool = True,
        with_extras: bool = False,
        at_head: AtHead | None = None,
        candidate_id_Nm: torch.Tensor | None = None,
        task: Callable[[PackedBatch], Any] | None = None,
    ) -> Any:
        """The loss sum_i objective(logp_i, entropy_i) over the batch's targets, and their statistics.

        `elementwise`: the loss of a token depends on that token only; one visit of the head (see `policy_head`).
        Otherwise `objective(logp_N, entropy_N, slice(None))` may be any differentiable function, and the head is
        visited again in the backward pass; its result is summed. No objective: statistics only, without gradients. A
        batch without targets gives a loss of 0 that depends on every trained parameter. `at_head` makes the objective
        from what enters the head (packed attention only). `candidate_id_Nm`: the objective gets the log-probs of these
        tokens, logp_Nm, in place of the targets'; `logp_N` is that of the first of them (packed attention only).
        `task`: one of this module's own, done here in place of all that, where a sharded module has its weights.
        """
        if task is not None:
            return task(batch)
        if candidate_id_Nm is not None:
            return self._match_candidates(batch, objective, candidate_id_Nm)
        hidden_ND = None
        if at_head is not None:
            weight_VD, bias_V = self._head_weights()
            hidden_ND = self.final_states(batch)
            with torch.no_grad():
                objective = at_head(hidden_ND.detach(), weight_VD.detach(), None if bias_V is None else bias_V.detach())
        if objective is None:
            with torch.no_grad():
                statistics = self._statistics(batch, with_extras)
            return PolicyOutput(statistics.logp_N.new_zeros(()), *statistics)
        if elementwise and self.attention == "packed":
            weight_VD, bias_V = self._head_weights()
            return PolicyOutput(
                *policy_head(
                    self.final_states(batch) if hidden_ND is None else hidden_ND,
                    weight_VD,
                    batch.target_N,
                    objective,
                    bias_V=bias_V,
                    settings=self.head,
                    with_extras=with_extras,
                )
            )
        statistics = self._statistics(batch, with_extras, hidden_ND)
        loss = objective(statistics.logp_N, statistics.entropy_N, slice(None)).sum()
        loss = loss.to(statistics.logp_N.dtype)
        return PolicyOutput(loss, *(None if tensor is None else tensor.detach() for tensor in statistics))

    def reference_logps(self, batch: PackedBatch) -> torch.Tensor:
        """Log-probs (N,) of the base model, adapters off, without gradients.

        Raises ValueError for a policy without adapters: its starting weights are gone after the first update.
        """
        if not self.has_adapters:
            raise ValueError("reference_logps needs LoRA: without adapters, load the reference as a second policy")
        with torch.no_grad(), self.model.disable_adapter():
            return self(batch).logp_N

    def hidden(self, batch: PackedBatch) -> torch.Tensor:
        """Final hidden states (N, D) at the positions that predict the targets. Packed attention only."""
        return self(batch, task=self.final_states)

    def frozen_hidden(self, batch: PackedBatch) -> torch.Tensor:
        """As `hidden`, without gradients."""
        with torch.no_grad():
            return self.hidden(batch)

    @torch.no_grad()
    def read(self, batch: PackedBatch, candidates: int = 0) -> Reading:
        """States, log-probs and the `candidates` likeliest tokens (0: none) at the batch's targets, without gradients,
        from one forward pass. Packed attention only."""
        return self(batch, task=lambda batch: self._reading(batch, candidates))

    def _reading(self, batch: PackedBatch, candidates: int) -> Reading:
        hidden_ND, (weight_VD, bias_V) = self.final_states(batch), self._head_weights()
        statistics = token_statistics(hidden_ND, weight_VD, batch.target_N, bias_V=bias_V, settings=self.head)
        likely = None
        if candidates:
            likely = likely_candidates(
                hidden_ND, weight_VD, batch.target_N, candidates, bias_V=bias_V, settings=self.head
            )
        return Reading(hidden_ND, statistics.logp_N, likely)

    def read_reference(self, batch: PackedBatch, candidates: int = 0) -> Reading:
        """As `read`, of the base model, adapters off. Raises ValueError for a policy without adapters."""
        if not self.has_adapters:
            raise ValueError("read_reference needs LoRA: without adapters, load the reference as a second policy")
        with self.model.disable_adapter():
            return self.read(batch, candidates)

    def trainable_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """(name, parameter) of what is trained; a tied weight once."""
        return [(name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad]

    def weights(self, state: Mapping[str, torch.Tensor] | None = None) -> Iterator[tuple[str, torch.Tensor]]:
        """(HF parameter name, tensor) of the full model, for engines; a tied LM head is left out, adapters are merged
        on a copy. Without adapters the tensors are the parameters themselves: use them before the next update.

        `state`: tensors by this module's state-dict names, e.g. gathered from shards, instead of its own parameters.
        """
        values = None if state is None else self._by_model_name(state)
        if isinstance(self.model, PeftModel):
            yield from merged_weights(self.model, values)
            return
        for name, parameter in self.model.named_parameters():
            yield name, (parameter if values is None else values[name]).detach()

    def reference_weights(
        self, state: Mapping[str, torch.Tensor] | None = None
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """As `weights`, of the base without adapters. Raises ValueError for a policy without adapters."""
        if not isinstance(self.model, PeftModel):
            raise ValueError("reference_weights needs LoRA: without adapters, load the reference as a second policy")
        return base_weights(self.model, None if state is None else self._by_model_name(state))

    def save(
        self,
        folder: str | Path,
        tokenizer: PreTrainedTokenizerBase | None = None,
        state: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """A checkpoint that `AutoModelForCausalLM.from_pretrained` loads, or with adapters one that
        `peft.PeftModel.from_pretrained` loads onto the base.

        `state`: see `weights`; its tensors are saved in their own precision.
        """
        if isinstance(self.model, PeftModel):
            # PEFT picks the adapters out of a state dict of the whole PeftModel
            values = None if state is None else {name.removeprefix("model."): t for name, t in state.items()}
            self.model.save_pretrained(folder, state_dict=values, save_embedding_layers=False)
        elif state is None:
            self.model.save_pretrained(folder)
        else:
            values = self._by_model_name(state)
            wanted = {name for name, _ in self.model.named_parameters()}
            tied = {name for name, _ in self.model.named_parameters(remove_duplicate=False)} - wanted
            self.model.save_pretrained(folder, state_dict={n: t for n, t in values.items() if n not in tied})
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)

    def self_check(self) -> None:
        """See `rlhf.models.self_check`."""
        from rlhf.models.self_check import self_check

        self_check(self)

    def _match_candidates(
        self, batch: PackedBatch, objective: Objective | None, candidate_id_Nm: torch.Tensor
    ) -> PolicyOutput:
        weight_VD, bias_V = self._head_weights()
        found = candidate_statistics(
            self.final_states(batch), weight_VD, candidate_id_Nm, bias_V=bias_V, settings=self.head
        )
        logp_Nm = found.logp_Nm.detach()
        loss = logp_Nm.new_zeros(()) if objective is None else objective(*found, slice(None)).sum()
        return PolicyOutput(loss, logp_Nm[:, 0], found.entropy_N, candidate_logp_Nm=logp_Nm)

    def _statistics(
        self, batch: PackedBatch, with_extras: bool, hidden_ND: torch.Tensor | None = None
    ) -> TokenStatistics:
        if self.attention == "padded":
            statistics = plain_statistics(self.causal_lm, batch, self.head.temperature)
            return statistics if with_extras else statistics._replace(collision_N=None, max_prob_N=None)
        weight_VD, bias_V = self._head_weights()
        return token_statistics(
            self.final_states(batch) if hidden_ND is None else hidden_ND,
            weight_VD,
            batch.target_N,
            bias_V=bias_V,
            settings=self.head,
            with_extras=with_extras,
        )

    def final_states(self, batch: PackedBatch) -> torch.Tensor:
        """What `hidden` gives, for use inside a forward of this module."""
        output = self.causal_lm.get_decoder()(
            input_ids=batch.input_ids_T[None],
            position_ids=batch.position_ids_T[None],
            use_cache=False,
            **{PLAN: batch.plan},
        )
        return output.last_hidden_state[0].index_select(0, batch.hidden_index_N)

    def _head_weights(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        head = self.causal_lm.get_output_embeddings()
        return head.weight, getattr(head, "bias", None)

    def _by_model_name(self, state: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        return WithoutPrefix(state, "model.base_model.model." if self.has_adapters else "model.")
