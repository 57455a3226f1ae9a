"""VPO (arXiv 2405.19320) and its relatives DPO, IPO and XPO, online and offline.

The loss is of summed log-probs of whole completions (rlhf/algorithms/preference.py). Its gradient is a sum over
completions of dL / d log pi(y) times the gradient of log pi(y): the weights come from one forward pass before each
optimizer step, and the backward passes then take any split into micro-batches and ranks without changing the gradient.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rlhf.algorithms.policy_losses import importance_ratio
from rlhf.algorithms.preference import check_direction
from rlhf.algorithms.token_fields import TokenFields
from rlhf.config.vpo import PreferenceConfig
from rlhf.data.pairs import PairedGroup, configured_pairs
from rlhf.data.sample_json import sample_from_json, sample_to_json
from rlhf.data.seeds import derive_seed
from rlhf.data.types import Sample
from rlhf.trainers.vpo_step import Completions, Pair, preference_step
from rlhf.training.algorithm import Objective, Weighed
from rlhf.training.batch import TrainingSample, group_by_prompt
from rlhf.training.collectives import gather_lists, rank_of_world, sum_numbers
from rlhf.training.guards import TrainingStopped
from rlhf.training.learner import Learner
from rlhf.training.reference_table import ReferenceTable

Group = list[Sample]


@dataclass(frozen=True, slots=True)
class Membership:
    """What the completions of a group are to each other: pairs by position in the group, and calibration ones."""

    pairs: tuple[tuple[int, int, float], ...]
    calibration: tuple[int, ...]


class ValueIncentivised:
    """The algorithm of `PreferenceConfig`. State: the groups that are replayed.

    `table`: reference log-probs made before the first step; without it the learner's reference is asked.
    """

    denominator = "token"
    elementwise = True
    has_ratio = False

    def __init__(self, config: PreferenceConfig, samples_per_prompt: int) -> None:
        check_direction(config.direction)
        self.config, self.samples_per_prompt = config, samples_per_prompt
        self.table: ReferenceTable | None = None
        self.replayed: list[list[Group]] = []
        self.members: dict[tuple[str, int], Membership] = {}
        self._is_told = False

    def wants_replacement(self, group: Group) -> bool:
        """Whether the group makes no pair."""
        return not self._pairs(group, 0).pairs

    def should_sync(self) -> bool:
        """Every step moves the policy."""
        return True

    def prepare(self, samples: list[Sample], learner: Learner) -> list[TrainingSample]:
        """Groups of this step and of those that are replayed, with the reference's log-probs of what is used."""
        fresh = _by_prompt(samples, self.samples_per_prompt)
        if self.config.reference == "iteration" and _version(samples) % self.config.reference_every == 0:
            learner.move_reference()
        keeps = {"latest": 1, "window": self.config.replay_window, "all": len(self.replayed) + 1}[self.config.replay]
        self.replayed = [*self.replayed, fresh][-keeps:]
        self.members = {}
        batch: list[TrainingSample] = []
        for age, step in enumerate(reversed(self.replayed)):
            for place, group in enumerate(step):
                key = (group[0].prompt.id, age * len(fresh) + place)
                self.members[key] = membership = self._membership(group, learner.config.run.seed)
                used = {place for pair in membership.pairs for place in pair[:2]} | set(membership.calibration)
                batch += [TrainingSample(s, 0.0, learned=i in used, group=key) for i, s in enumerate(group)]
        learned = [sample for sample in batch if sample.learned]
        references = iter(self.table.look_up(learned) if self.table else learner.reference_logps(learned))
        return [replace(s, reference_logps=next(references)) if s.learned else s for s in batch]

    def weigh(self, samples: list[TrainingSample], learner: Learner) -> Weighed:
        """The samples with -dL / d log pi(y) as advantages."""
        used = [sample for sample in samples if sample.learned]
        places = {id(sample): place for place, sample in enumerate(used)}
        pairs: list[Pair] = []
        calibration: list[tuple[int, int]] = []
        for index, group in enumerate(group_by_prompt(samples, self.samples_per_prompt)):
            membership = self.members[group[0].group]
            pairs += [self._pair(group[a], group[b], weight, places, learner) for a, b, weight in membership.pairs]
            calibration += [(places[id(group[place])], index) for place in membership.calibration]
        completions = Completions(
            logp_S=_sums(learner.logps(used)), ref_S=_sums([sample.reference_logps for sample in used]),
            tokens_S=torch.tensor([sample.length for sample in used]),
        )  # fmt: skip
        alpha = self._alpha(learner)
        step = preference_step(
            completions, pairs, calibration, self.config, alpha, lambda numbers: sum_numbers(numbers, learner.device)
        )
        self._watch(step.metrics, learner)
        weights = iter((-step.gradient_S).tolist())
        weighed = [replace(s, advantage=next(weights)) if s.learned else s for s in samples]
        weighed = [replace(s, learned=s.advantage != 0) for s in weighed]
        return Weighed(weighed, step.loss, step.metrics | {"value/alpha": alpha})

    def objective(self, fields: TokenFields) -> Objective:
        """The weighed sum of log-probs, of which the gradient is the loss's."""

        def loss(logp_N: Tensor, entropy_N: Tensor, rows: slice) -> Tensor:
            return -fields.advantage_N[rows] * logp_N

        return loss

    @torch.no_grad()
    def measure(self, logp_N: Tensor, entropy_N: Tensor, fields: TokenFields) -> dict[str, float]:
        """Sums over the tokens of a micro-batch; of the engine where an engine drew all of them at these weights."""
        sums = {"policy/entropy": float(entropy_N.double().sum())}
        if self.config.mode == "online" and self.config.replay == "latest":
            # completions of the reference were drawn by other weights: they count as 1
            gap_N = torch.where(fields.engine_logp_N.isnan(), 0.0, logp_N - fields.engine_logp_N)
            sums["policy/engine_ratio_mean"] = float(importance_ratio(gap_N).double().sum())
            sums["policy/engine_logp_gap"] = float(gap_N.abs().double().sum())
        return sums

    def state_dict(self) -> dict[str, Any]:
        """The replayed groups of all ranks; collective. Nothing where only the latest step is learned from."""
        older = self.replayed if self.config.replay != "latest" else []
        return {"replayed": [gather_lists([[sample_to_json(s) for s in group] for group in step]) for step in older]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Each rank takes its share: as many ranks as have saved keep their own groups."""
        rank, world_size = rank_of_world()
        steps = [[[sample_from_json(s) for s in group] for group in step] for step in state["replayed"]]
        self.replayed = [step[rank * len(step) // world_size : (rank + 1) * len(step) // world_size] for step in steps]

    def _membership(self, group: Group, seed: int) -> Membership:
        made = self._pairs(group, seed)
        place = {id(sample): index for index, sample in enumerate(group)}
        pairs = tuple((place[id(pair.chosen)], place[id(pair.rejected)], pair.weight) for pair in made.pairs)
        sides = {"chosen": 0, "rejected": 1}
        match self.config.calibration:
            case "chosen" | "rejected" as side:
                calibration = {pair[sides[side]] for pair in pairs}
            case "previous_policy":
                own = [i for i, s in enumerate(group) if not s.is_of_reference and s.completion_ids]
                calibration = set(own[: self.config.calibration_samples])
            case _:
                calibration = {
                    i for i, s in enumerate(group)
                    if s.is_of_reference and s.completion_ids
                    and (self.config.calibration == "ref" or (s.verdict is not None and s.verdict.outcome == "wrong"))
                }  # fmt: skip
        return Membership(pairs, tuple(sorted(calibration)) if self.config.alpha else ())

    def _pairs(self, group: Group, seed: int) -> PairedGroup:
        own = [sample for sample in group if not sample.is_of_reference]
        return configured_pairs(own, self.config.pairs, seed=seed, iteration=own[0].policy_version)

    @staticmethod
    def _pair(
        chosen: TrainingSample, rejected: TrainingSample, weight: float, places: dict[int, int], learner: Learner
    ) -> Pair:
        ids = (chosen.sample.id, rejected.sample.id)
        uniform = derive_seed(learner.config.run.seed, "labels", learner.updates, *ids) / 2**63
        gap = chosen.sample.reward - rejected.sample.reward
        return Pair(places[id(chosen)], places[id(rejected)], weight, gap, uniform)

    def _alpha(self, learner: Learner) -> float:
        alpha = float(self.config.alpha or 0.0)
        if self.config.alpha_schedule == "linear":
            return alpha * (1 - learner.updates / learner.total_updates)
        return alpha / (learner.updates + 1) if self.config.alpha_schedule == "inverse" else alpha

    def _watch(self, metrics: dict[str, float], learner: Learner) -> None:
        """Stop where optimism has driven the calibration completions away, tell of likelihood displacement once."""
        ratio, floor = metrics.get("value/cal_logratio"), self.config.min_calibration_ratio
        if floor is not None and ratio is not None and ratio < floor:
            raise TrainingStopped(
                f"the calibration completions' mean log-ratio is {ratio:.3g}, below "
                f"algorithm.min_calibration_ratio = {floor}: optimism has gone too far; lower algorithm.alpha, or set "
                "algorithm.log_ratio_floor"
            )
        displaced, limit = -metrics.get("logps/chosen_ratio", 0.0), self.config.max_displacement
        if limit is not None and displaced > limit and not self._is_told:
            self._is_told = True
            learner.accelerator.print(
                f"WARNING the chosen completions have become {displaced:.3g} nats less likely than under the reference "
                f"(algorithm.max_displacement {limit}): likelihood displacement; lower the learning rate, or use "
                "pessimism on the chosen ones (sign -1, calibration chosen)"
            )


def _by_prompt(samples: Sequence[Sample], samples_per_prompt: int) -> list[Group]:
    """The groups in order of first appearance; completions of the reference go with their prompt's first group."""
    groups: dict[tuple[str, int], Group] = {}
    for sample in samples:
        index = 0 if sample.is_of_reference else sample.index // samples_per_prompt
        groups.setdefault((sample.prompt.id, index), []).append(sample)
    return list(groups.values())


def _version(samples: Sequence[Sample]) -> int:
    return max(sample.policy_version for sample in samples)


def _sums(logps: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor([sum(values) for values in logps], dtype=torch.float64)
