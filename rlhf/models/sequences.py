"""What a policy is trained on: token ids of a prompt and of what followed it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TrainingSequence:
    """One prompt and one completion as token ids; the completion's tokens are the targets and may be none.

    Raises ValueError for an empty prompt: nothing would predict the first completion token.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise ValueError(
                f"a training sequence needs at least one prompt token to predict its {len(self.completion_ids)} "
                "completion tokens from: give models without a chat template their BOS token"
            )
