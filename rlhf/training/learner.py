"""The learner: packed micro-batches in, one optimizer step out, under one denominator."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from rlhf.algorithms.aggregation import StepTotals
from rlhf.algorithms.token_fields import TokenFields
from rlhf.config.lengths import most_own_tokens
from rlhf.config.recipe import RecipeConfig
from rlhf.config.sharding import Sharding
from rlhf.data.seeds import derive_seed
from rlhf.models.packing import PackedBatch, pack
from rlhf.models.policy import Policy
from rlhf.training.algorithm import (
    Algorithm,
    Critic,
    ScreeningAlgorithm,
    StepVerdict,
    WeighingAlgorithm,
)
from rlhf.training.balance import balanced
from rlhf.training.batch import TrainingSample, group_by_prompt, local_totals, split_minibatches
from rlhf.training.collectives import sum_numbers
from rlhf.training.even_batches import rank_micro_batches
from rlhf.training.guards import NonFiniteGuard, is_stale
from rlhf.training.learner_state import LearnerState
from rlhf.training.metrics import MetricAverager
from rlhf.training.micro_batch import micro_batch, screened
from rlhf.training.optimizers import build_optimizer, keeps_master_copies
from rlhf.training.schedule import learning_rate_factor
from rlhf.training.weights.build import make_weights
from rlhf.training.weights.fsdp2 import GatheredTensors, copy_whole
from rlhf.training.weights.master import clip_factor


class Learner:
    """Owns the policy's master weights and the optimizer. All methods are collective over ranks."""

    def __init__(
        self,
        policy: Policy,
        config: RecipeConfig,
        accelerator: Accelerator,
        guard: NonFiniteGuard,
        reference: Policy | None = None,
        critic: Critic | None = None,
        sharding: Sharding = "ddp",
    ) -> None:
        self.policy, self.config, self.accelerator, self.guard = policy, config, accelerator, guard
        self.reference, self.critic = reference, critic
        self.device = accelerator.device
        named = {name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}
        self.weights = make_weights(
            policy, named, self._build_optimizer, accelerator, sharding, copies=keeps_master_copies(config.optimizer)
        )
        self.peak_lrs = [group["lr"] for group in self.optimizer.param_groups]
        self.updates = 0
        self.state = LearnerState(self.weights, reference, critic)
        passes = config.batch.minibatches * config.batch.epochs
        self.reuses_batch = passes > 1
        self.total_updates = config.batch.steps * passes

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self.weights.optimizer

    def update(self, samples: list[TrainingSample], algorithm: Algorithm, step: int) -> dict[str, float]:
        """Learn from one rollout batch: `epochs` x `minibatches` optimizer steps. Returns metrics, equal on all ranks.

        Raises TrainingStopped (guards.py) after too many skipped steps, or when learner and engine disagree.
        """
        batch = self.config.batch
        # dropout (LoRA) is the only random draw in here
        torch.manual_seed(derive_seed(self.config.run.seed, step, "learner", self.accelerator.process_index))
        groups = group_by_prompt(samples, self.config.completions_per_prompt)
        balance: dict[str, float] = {}
        # what weighs whole groups knows those that it prepared
        if not isinstance(algorithm, WeighingAlgorithm):
            groups, balance = balanced(groups, keeps_counts=batch.minibatches > 1)
        samples = [sample for group in groups for sample in group]
        old_logps = self._old_logps(samples) if self.reuses_batch and algorithm.has_ratio else None
        averager = MetricAverager()
        for epoch in range(batch.epochs):
            order = self._group_order(len(groups), step, epoch)
            for index, minibatch in enumerate(split_minibatches(groups, batch.minibatches, order)):
                first = epoch == 0 and index == 0
                self._optimizer_step(minibatch, algorithm, step, old_logps, averager, check_ratio=first)
        return averager.reduce() | balance | ({} if self.critic is None else self.critic.metrics)

    def _optimizer_step(
        self,
        samples: list[TrainingSample],
        algorithm: Algorithm,
        step: int,
        old_logps: dict[int, Tensor] | None,
        averager: MetricAverager,
        check_ratio: bool,
    ) -> None:
        weighed = algorithm.weigh(samples, self) if isinstance(algorithm, WeighingAlgorithm) else None
        if weighed is not None:
            samples = weighed.samples
        local = local_totals(samples)
        summed = sum_numbers({"sequences": local.sequences, "tokens": local.tokens}, self.device)
        totals = StepTotals(int(summed["sequences"]), int(summed["tokens"]))
        if not totals.sequences:
            # masked on every rank, or the critic learns alone: nothing to divide by, so no step
            self.updates += 1
            averager.add_sum("tokens/trained", 0)
            averager.add_sum("guards/skipped_updates", 0.0)
            return
        learned = [sample for sample in samples if sample.learned and sample.length]
        self.policy.train()
        self.weights.zero_gradients()
        factor = learning_rate_factor(self.updates, self.total_updates, self.config.schedule)
        screening = algorithm if isinstance(algorithm, ScreeningAlgorithm) else None
        if screening is not None:
            screening.begin_step(self, self.config.optimizer.lr * factor)
        loss, tokens, sums, trained = 0.0, 0, {}, []
        batches = self._micro_batches(learned)
        for place, members in enumerate(batches):
            part = [learned[index] for index in members]
            trained += part
            packed, fields = self._fields(part, totals, algorithm, old_logps)
            # a micro-batch without samples takes part in what is collective, and there is nothing to screen or measure
            at_head = screened(screening, fields, packed) if screening is not None and part else None
            output = self.weights.module(
                packed, algorithm.objective(fields), elementwise=algorithm.elementwise, at_head=at_head,
                candidate_id_Nm=fields.candidate_id_Nm,
            )  # fmt: skip
            self.weights.backward(output.loss, is_last=place == len(batches) - 1)
            loss += float(output.loss.detach())
            tokens += len(fields.advantage_N)
            measured = algorithm.measure(output.logp_N, output.entropy_N, fields) if part else {}
            for name, value in measured.items():
                sums[name] = sums.get(name, 0.0) + value
        self.weights.reduce_gradients()
        verdict = StepVerdict() if screening is None else screening.end_step(self)
        self.weights.scale_gradients(verdict.scale)
        loss *= verdict.scale
        norm = self.weights.gradient_norm()
        # the weighed sum of log-probs has the loss's gradient, not its value
        loss = sum_numbers({"loss": loss}, self.device)["loss"] if weighed is None else weighed.loss
        self.updates += 1
        for name, value in ({} if weighed is None else weighed.metrics).items():
            averager.add(name, value)
        for name, value in sums.items():
            averager.add(name, value / max(tokens, 1), weight=tokens)
        averager.add("loss", loss)
        averager.add("gradient/norm", norm)
        averager.add("optimizer/lr", self.config.optimizer.lr * factor)
        averager.add_sum("tokens/trained", tokens)
        if check_ratio:
            name = "policy/engine_ratio_mean"  # absent where no engine drew the tokens
            is_checked = name in sums and not is_stale(learned, step, self.config.batch)
            self.guard.check_ratio(step, sums.get(name, 0.0), tokens if is_checked else 0, self.device)
        if self.guard.is_bad(loss, norm):
            self.guard.skip(step, self, learned, totals, algorithm, old_logps, loss=loss, norm=norm)
            averager.add_sum("guards/skipped_updates", 1.0 if self.accelerator.is_main_process else 0.0)
            self.weights.zero_gradients()
            return
        self.guard.reset()
        averager.add_sum("guards/skipped_updates", 0.0)
        for name, value in verdict.metrics.items():
            averager.add(name, value)
        if verdict.is_skipped:
            self.weights.zero_gradients()
            return
        for group, peak in zip(self.optimizer.param_groups, self.peak_lrs, strict=True):
            group["lr"] = peak * factor
        self.weights.scale_gradients(clip_factor(norm, self.config.batch.max_grad_norm))
        self.weights.step()
        if screening is not None:
            for name, value in screening.after_step(self, trained).items():
                averager.add(name, value)

    def _build_optimizer(self, masters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        if not masters:
            # a policy that is never trained
            return torch.optim.SGD([{"params": []}], lr=0.0)
        seed = derive_seed(self.config.run.seed, "optimizer")
        return build_optimizer(self.config.optimizer, self.policy, masters, seed)

    def logps(self, samples: Sequence[TrainingSample]) -> list[tuple[float, ...]]:
        """Log-probs of the completions under the policy as it is."""
        self.policy.eval()
        return self._score(samples, lambda packed: self.policy(packed).logp_N)

    def sample_gradient(
        self, sample: TrainingSample | None, totals: StepTotals, algorithm: Algorithm,
        old_logps: dict[int, Tensor] | None,
    ) -> tuple[float, bool]:  # fmt: skip
        """(loss, whether the gradient is finite) of one sample alone; leaves no gradient behind. Local to this rank, or
        collective where weights are sharded: one rank gives its sample then, the others None."""
        self.weights.zero_gradients()
        packed, fields = self._fields([] if sample is None else [sample], totals, algorithm, old_logps)
        output = self.weights.module(
            packed, algorithm.objective(fields), elementwise=algorithm.elementwise,
            candidate_id_Nm=fields.candidate_id_Nm,
        )  # fmt: skip
        self.weights.backward(output.loss, is_last=True)
        finite = self.weights.has_finite_gradients()
        if self.weights.is_sharded:
            finite = not sum_numbers({"bad": not finite}, self.device)["bad"]
        self.weights.zero_gradients()
        return float(output.loss.detach()), finite

    def reference_logps(self, samples: Sequence[TrainingSample]) -> list[tuple[float, ...]]:
        """Log-probs of the completions under the reference policy: the starting checkpoint, or the base under LoRA."""
        policy, score = self.policy, None
        if self.reference is not None:
            policy, score = self.reference, lambda packed: self.reference(packed).logp_N
        return self._score(samples, score or policy.reference_logps)

    def policy_weights(self) -> Iterator[tuple[str, Tensor]]:
        """(HF name, tensor) of the policy, for engines. Collective where weights are sharded."""
        return self.policy.weights(self._whole(self.policy))

    def reference_weights(self) -> Iterator[tuple[str, Tensor]]:
        """(HF name, tensor) of the reference policy, for engines. Collective where weights are sharded."""
        if self.reference is not None:
            return self.reference.weights(self._whole(self.reference))
        return self.policy.reference_weights(self._whole(self.policy))

    def whole_weight(self, parameter: nn.Parameter) -> Tensor:
        """A parameter of the policy in one piece. Collective where weights are sharded."""
        return self.weights.whole({"": parameter})[""].detach()

    def save_policy(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """A checkpoint as `Policy.save` writes it, by the main process. Collective where weights are sharded."""
        state = self._whole(self.policy)
        if state is not None:
            # gathered one by one, and kept in the main process's memory only
            kept, dtype = {}, getattr(torch, self.config.model.dtype)
            for name, tensor in state.items():
                if self.accelerator.is_main_process:
                    kept[name] = tensor.to("cpu", None if ".lora_" in name else dtype, copy=True)
            state = kept
        if self.accelerator.is_main_process:
            self.policy.save(folder, tokenizer, state)

    def move_reference(self) -> None:
        """The policy as it is becomes the reference. Not under LoRA."""
        assert self.reference is not None
        self.state.reference_has_moved = True
        copy_whole(self.weights.whole(dict(self.policy.named_parameters())), self.reference)

    @torch.no_grad()
    def restart_policy(self) -> None:
        """The policy is the reference again, and its optimizer new. Under LoRA what the adapters add is set to 0."""
        start = {} if self.reference is None else dict(self.reference.named_parameters())
        whole = GatheredTensors(start)
        trained = zip(self.weights.names, self.weights.parameters, strict=True)
        values = {name: whole[name] for name in self.weights.names if name in start}
        shape_of = {name: getattr(parameter, "ds_shape", parameter.shape) for name, parameter in trained}
        values |= {name: torch.zeros(tuple(shape)) for name, shape in shape_of.items() if "lora_B" in name}
        self.weights.overwrite(values)
        self.weights.new_optimizer()

    @torch.no_grad()
    def _score(
        self, samples: Sequence[TrainingSample], score: Callable[[PackedBatch], Tensor]
    ) -> list[tuple[float, ...]]:
        result: list[tuple[float, ...]] = [()] * len(samples)
        for members in self._micro_batches(samples):
            sequences = [samples[index].sequence for index in members]
            logps = score(pack(sequences).to(self.device)).float().split([s.targets for s in sequences])
            for index, values in zip(members, logps, strict=True):
                result[index] = tuple(values.tolist())
        return result

    def _old_logps(self, samples: list[TrainingSample]) -> dict[int, Tensor]:
        """Log-probs before the first of several updates, by id() of the sample: what the ratio is taken against."""
        learned = [sample for sample in samples if sample.learned]
        return {id(sample): torch.tensor(values) for sample, values in zip(learned, self.logps(learned), strict=True)}

    def _micro_batches(self, samples: Sequence[TrainingSample]) -> list[list[int]]:
        """As many on every rank where forward passes are collective."""
        sequences = [sample.sequence for sample in samples]
        return rank_micro_batches(
            sequences, self.config.batch.tokens_per_micro_batch, self.device, is_even=self.weights.is_sharded
        )

    def _whole(self, policy: Policy) -> Mapping[str, Tensor] | None:
        """Its parameters by name, gathered when they are looked up; None where they are whole."""
        if not self.weights.is_sharded:
            return None
        parameters = dict(policy.named_parameters())
        return self.weights.whole(parameters) if policy is self.policy else GatheredTensors(parameters)

    def _fields(
        self, samples: Sequence[TrainingSample], totals: StepTotals, algorithm: Algorithm,
        old_logps: Mapping[int, Tensor] | None,
    ) -> tuple[PackedBatch, TokenFields]:  # fmt: skip
        max_tokens = most_own_tokens(self.config)
        return micro_batch(samples, totals, algorithm.denominator, old_logps, max_tokens, self.device)

    def _group_order(self, groups: int, step: int, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(derive_seed(self.config.run.seed, step, "minibatches", epoch))
        return torch.randperm(groups, generator=generator).tolist()
