"""What a policy is trained on: token ids of a prompt and of what followed it."""

from collections.abc import Sequence
from dataclasses import dataclass

from rlhf.data.turns import Turn, check_turns, own_count, own_positions


@dataclass(frozen=True, slots=True)
class TrainingSequence:
    """One prompt and one completion as token ids; the completion's tokens are the targets and may be none.

    `turns`: those of a dialogue (`Sample.turns`); only the assistant's tokens are then targets, the environment's are
    context.

    Raises ValueError for an empty prompt (nothing would predict the first completion token) and for turns that do not
    add up.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    turns: tuple[Turn, ...] = ()

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise ValueError(
                f"a training sequence needs at least one prompt token to predict its {len(self.completion_ids)} "
                "completion tokens from: give models without a chat template their BOS token"
            )
        check_turns(self.turns, len(self.completion_ids), "training sequence")

    @property
    def targets(self) -> int:
        """How many completion tokens are targets."""
        return own_count(self.turns, len(self.completion_ids))

    @property
    def target_positions(self) -> Sequence[int]:
        """Their positions in the completion, ascending."""
        return own_positions(self.turns, len(self.completion_ids))

    @property
    def forwarded(self) -> int:
        """How many completion tokens are forwarded: those before the last target, which predicts nothing."""
        behind = self.turns[-1][1] if self.turns else 0
        return max(0, len(self.completion_ids) - behind - 1)
