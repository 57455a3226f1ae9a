"""The learner: packed micro-batches in, one optimizer step out, under one denominator."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from rlhf.algorithms.aggregation import Denominator, StepTotals, token_weight
from rlhf.algorithms.token_fields import TokenFields
from rlhf.config.lengths import most_own_tokens
from rlhf.config.recipe import RecipeConfig
from rlhf.data.seeds import derive_seed
from rlhf.models.packing import PackedBatch, micro_batches, pack
from rlhf.models.policy import AtHead, Policy
from rlhf.training.algorithm import (
    Algorithm,
    Critic,
    Objective,
    ScreeningAlgorithm,
    StepVerdict,
    WeighingAlgorithm,
)
from rlhf.training.batch import TrainingSample, group_by_prompt, local_totals, split_minibatches
from rlhf.training.checkpoint import part_of, prefixed
from rlhf.training.collectives import sum_gradients, sum_numbers
from rlhf.training.guards import NonFiniteGuard, is_stale
from rlhf.training.master_weights import MasterWeights
from rlhf.training.metrics import MetricAverager
from rlhf.training.optimizers import build_optimizer, keeps_master_copies
from rlhf.training.schedule import learning_rate_factor

REFERENCE_PREFIX = "reference."
CRITIC_PREFIX = "critic."
"""In checkpoints, before the names of the reference's parameters, and of what the critic keeps."""


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
    ) -> None:
        self.policy, self.config, self.accelerator, self.guard = policy, config, accelerator, guard
        self.reference, self.critic = reference, critic
        self.device = accelerator.device
        named = {name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}
        self.weights = MasterWeights(named, copies=keeps_master_copies(config.optimizer))
        self.optimizer = self._new_optimizer()
        self.peak_lrs = [group["lr"] for group in self.optimizer.param_groups]
        self.updates = 0
        self.has_moved_reference = False
        passes = config.batch.minibatches * config.batch.epochs
        self.reuses_batch = passes > 1
        self.total_updates = config.batch.steps * passes

    def update(self, samples: list[TrainingSample], algorithm: Algorithm, step: int) -> dict[str, float]:
        """Learn from one rollout batch: `epochs` x `minibatches` optimizer steps. Returns metrics, equal on all ranks.

        Raises TrainingStopped (guards.py) after too many skipped steps, or when learner and engine disagree.
        """
        batch = self.config.batch
        # dropout (LoRA) is the only random draw in here
        torch.manual_seed(derive_seed(self.config.run.seed, step, "learner", self.accelerator.process_index))
        old_logps = self._old_logps(samples) if self.reuses_batch and algorithm.has_ratio else None
        averager = MetricAverager()
        groups = group_by_prompt(samples, self.config.completions_per_prompt)
        for epoch in range(batch.epochs):
            order = self._group_order(len(groups), step, epoch)
            for index, minibatch in enumerate(split_minibatches(groups, batch.minibatches, order)):
                first = epoch == 0 and index == 0
                self._optimizer_step(minibatch, algorithm, step, old_logps, averager, check_ratio=first)
        return averager.reduce() | ({} if self.critic is None else self.critic.metrics)

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
        for members in self._micro_batches(learned):
            part = [learned[index] for index in members]
            trained += part
            packed, fields = self._prepare(part, totals, algorithm.denominator, old_logps)
            at_head = None if screening is None else _screened(screening, fields, packed)
            output = self.policy(
                packed, algorithm.objective(fields), elementwise=algorithm.elementwise, at_head=at_head,
                candidate_id_Nm=fields.candidate_id_Nm,
            )  # fmt: skip
            output.loss.backward()
            self.weights.collect_gradients()
            loss += float(output.loss.detach())
            tokens += len(fields.advantage_N)
            for name, value in algorithm.measure(output.logp_N, output.entropy_N, fields).items():
                sums[name] = sums.get(name, 0.0) + value
        self.weights.fill_missing_gradients()
        sum_gradients(self.weights.masters)
        verdict = StepVerdict() if screening is None else screening.end_step(self)
        if verdict.scale != 1:
            torch._foreach_mul_([master.grad for master in self.weights.masters], verdict.scale)
            loss *= verdict.scale
        norm = float(torch.nn.utils.clip_grad_norm_(self.weights.masters, self.config.batch.max_grad_norm))
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
        self.optimizer.step()
        self.weights.publish()
        self.weights.zero_gradients()
        if screening is not None:
            for name, value in screening.after_step(self, trained).items():
                averager.add(name, value)

    def _new_optimizer(self) -> torch.optim.Optimizer:
        masters = dict(zip(self.weights.names, self.weights.masters, strict=True))
        seed = derive_seed(self.config.run.seed, "optimizer")
        return build_optimizer(self.config.optimizer, self.policy, masters, seed)

    def logps(self, samples: Sequence[TrainingSample]) -> list[tuple[float, ...]]:
        """Log-probs of the completions under the policy as it is."""
        self.policy.eval()
        return self._score(samples, lambda packed: self.policy(packed).logp_N)

    def sample_gradient(
        self, sample: TrainingSample, totals: StepTotals, algorithm: Algorithm, old_logps: dict[int, Tensor] | None
    ) -> tuple[float, bool]:
        """(loss, whether the gradient is finite) of one sample alone; leaves no gradient behind. Local to this rank."""
        self.weights.zero_gradients()
        packed, fields = self._prepare([sample], totals, algorithm.denominator, old_logps)
        output = self.policy(
            packed, algorithm.objective(fields), elementwise=algorithm.elementwise,
            candidate_id_Nm=fields.candidate_id_Nm,
        )  # fmt: skip
        output.loss.backward()
        self.weights.collect_gradients()
        finite = all(bool(master.grad.isfinite().all()) for master in self.weights.masters if master.grad is not None)
        self.weights.zero_gradients()
        return float(output.loss.detach()), finite

    def reference_logps(self, samples: Sequence[TrainingSample]) -> list[tuple[float, ...]]:
        """Log-probs of the completions under the reference policy: the starting checkpoint, or the base under LoRA."""
        policy, score = self.policy, None
        if self.reference is not None:
            policy, score = self.reference, lambda packed: self.reference(packed).logp_N
        return self._score(samples, score or policy.reference_logps)

    def reference_weights(self) -> Iterator[tuple[str, Tensor]]:
        """(HF name, tensor) of the reference policy, for engines."""
        return self.policy.reference_weights() if self.reference is None else self.reference.weights()

    def move_reference(self) -> None:
        """The policy as it is becomes the reference. Not under LoRA."""
        assert self.reference is not None
        self.has_moved_reference = True
        self.reference.load_state_dict(self.policy.state_dict())

    @torch.no_grad()
    def restart_policy(self) -> None:
        """The policy is the reference again, and its optimizer new. Under LoRA what the adapters add is set to 0."""
        start = {} if self.reference is None else dict(self.reference.named_parameters())
        for name, master in zip(self.weights.names, self.weights.masters, strict=True):
            if name in start:
                master.copy_(start[name])
            elif "lora_B" in name:
                master.zero_()
        self.weights.publish()
        self.optimizer = self._new_optimizer()

    def state_tensors(self) -> dict[str, Tensor]:
        """Master weights by name, a reference that is no longer the starting checkpoint, and the critic's weights."""
        moved = dict(self.reference.named_parameters()) if self.has_moved_reference else {}
        of_critic = {} if self.critic is None else self.critic.state_tensors()
        return self.weights.state_dict() | prefixed(REFERENCE_PREFIX, moved) | prefixed(CRITIC_PREFIX, of_critic)

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """What `state_tensors` gave."""
        moved, of_critic = (part_of(tensors, prefix) for prefix in (REFERENCE_PREFIX, CRITIC_PREFIX))
        others = (REFERENCE_PREFIX, CRITIC_PREFIX)
        self.weights.load_state_dict({n: t for n, t in tensors.items() if not n.startswith(others)})
        if self.critic is not None:
            self.critic.load_state_tensors(of_critic)
        if moved:
            self.has_moved_reference = True
            with torch.no_grad():
                for name, parameter in self.reference.named_parameters():
                    parameter.copy_(moved[name])

    def optimizer_state(self) -> dict[str, Any]:
        """Of the policy's optimizer, and under `critic` of the critic's."""
        own = self.optimizer.state_dict()
        return own if self.critic is None else own | {"critic": self.critic.optimizer_state()}

    def load_optimizer_state(self, state: Mapping[str, Any]) -> None:
        """What `optimizer_state` gave."""
        self.optimizer.load_state_dict({name: value for name, value in state.items() if name != "critic"})
        if self.critic is not None:
            self.critic.load_optimizer_state(state["critic"])

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
        return micro_batches([sample.sequence for sample in samples], self.config.batch.tokens_per_micro_batch)

    def _prepare(
        self,
        samples: list[TrainingSample],
        totals: StepTotals,
        denominator: Denominator,
        old_logps: dict[int, Tensor] | None,
    ) -> tuple[PackedBatch, TokenFields]:
        packed = pack([sample.sequence for sample in samples]).to(self.device)
        lengths = torch.tensor([sample.length for sample in samples])
        max_tokens = most_own_tokens(self.config)

        def per_token(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float32).repeat_interleave(lengths).to(self.device)

        def flat(values: list[tuple[float, ...]]) -> Tensor:
            return torch.tensor([value for row in values for value in row], dtype=torch.float32, device=self.device)

        references = [sample.reference_logps for sample in samples]
        matches = [sample.match for sample in samples if sample.match is not None]
        fields = TokenFields(
            advantage_N=flat([sample.token_advantages for sample in samples]),
            weight_N=per_token([token_weight(sample.length, totals, denominator, max_tokens) for sample in samples]),
            engine_logp_N=flat([sample.sample.own(sample.sample.logps) for sample in samples]),
            sequence_N=packed.sequence_N,
            sequences=len(samples),
            old_logp_N=torch.cat([old_logps[id(sample)] for sample in samples]).to(self.device) if old_logps else None,
            reference_logp_N=flat(references) if all(r is not None for r in references) else None,
            candidate_id_Nm=torch.cat([m.candidate_id_Tm for m in matches]).to(self.device) if matches else None,
            target_logp_NC=torch.cat([m.target_logp_TC for m in matches]).to(self.device) if matches else None,
        )
        return packed, fields

    def _group_order(self, groups: int, step: int, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(derive_seed(self.config.run.seed, step, "minibatches", epoch))
        return torch.randperm(groups, generator=generator).tolist()


def _screened(algorithm: ScreeningAlgorithm, fields: TokenFields, packed: PackedBatch) -> AtHead:
    """The algorithm's objective with the weights that it gives tokens when it sees what enters the head."""

    def at_head(hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None) -> Objective:
        return algorithm.objective(algorithm.screen(fields, hidden_ND, weight_VD, bias_V, packed.target_N))

    return at_head
