"""What the learner asks of an algorithm: a loss of tokens, a look at the LM head's input, weights of completions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from rlhf.algorithms.aggregation import Denominator
from rlhf.algorithms.token_fields import TokenFields
from rlhf.training.batch import TrainingSample

if TYPE_CHECKING:
    from rlhf.training.learner import Learner
    from rlhf.training.weights.build import Weights

Objective = Callable[[Tensor, Tensor, slice], Tensor]


class Algorithm(Protocol):
    """What the learner asks of an algorithm."""

    denominator: Denominator
    elementwise: bool  # the loss of a token depends on that token only, so the head can take it in one pass
    has_ratio: bool  # the loss knows the policy from before the first of several updates

    def objective(self, fields: TokenFields) -> Objective:
        """(logp_n, entropy_n, rows) -> weighted loss_n of those rows; the loss is the sum. Where the fields name
        candidates, their log-probs (n, m) take the place of the targets'."""

    def measure(self, logp_N: Tensor, entropy_N: Tensor, fields: TokenFields) -> dict[str, float]:
        """Sums over the tokens, by metric name."""


@dataclass(frozen=True, slots=True)
class StepVerdict:
    """What a screening algorithm says of a whole optimizer step: a factor of its gradient, whether to leave it out,
    metrics. Equal on all ranks."""

    scale: float = 1.0
    is_skipped: bool = False
    metrics: Mapping[str, float] = field(default_factory=dict)


@runtime_checkable
class ScreeningAlgorithm(Algorithm, Protocol):
    """An algorithm that decides which tokens count from what enters the LM head. All but `screen` are collective."""

    def begin_step(self, learner: "Learner", lr: float) -> None:
        """Before the first micro-batch of an optimizer step with learning rate `lr`."""

    def screen(
        self, fields: TokenFields, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, actions_N: Tensor
    ) -> TokenFields:
        """The fields of a micro-batch with the weights that its tokens are to have."""

    def end_step(self, learner: "Learner") -> StepVerdict:
        """After the last backward pass, before clipping."""

    def after_step(self, learner: "Learner", samples: list[TrainingSample]) -> Mapping[str, float]:
        """After the optimizer step on `samples`, in the order of their micro-batches: metrics of what it did."""


class Weighed(NamedTuple):
    """Samples whose advantages hold at the weights as they are, their loss over all ranks, and metrics, equal on
    all ranks."""

    samples: list[TrainingSample]
    loss: float
    metrics: Mapping[str, float]


@runtime_checkable
class WeighingAlgorithm(Algorithm, Protocol):
    """An algorithm whose loss is of whole completions together (pairs): its gradient is a sum over completions of a
    weight times the gradient of their log-prob. Weights first, from one more forward pass; then any split into
    micro-batches is exact."""

    def weigh(self, samples: list[TrainingSample], learner: "Learner") -> Weighed:
        """Before an optimizer step. Collective."""


class Critic(Protocol):
    """What the learner carries for an algorithm with a critic: it is saved, loaded and reported with the policy."""

    metrics: dict[str, float]
    """Of the last step, equal on all ranks."""

    def state_tensors(self) -> dict[str, Tensor]: ...

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None: ...

    def sharded_weights(self) -> dict[str, "Weights"]:
        """What each rank has a part of, by name: it is saved in shards."""

    def optimizer_state(self) -> dict[str, Any]:
        """Tensors and primitives. Collective."""

    def load_optimizer_state(self, state: Mapping[str, Any]) -> None: ...
