"""What counts as one action of a completion: a token, a chunk of tokens, or a whole turn; and what each action earned.

A completion of T actions has T + 1 states, the last of them behind its end. States and actions of B completions lie
flat, one completion behind the other, so action a of completion b leads from state a + b to state a + b + 1. Everything
here comes from lengths and never from token ids: a stop token is an ordinary action, and an episode is over because the
engine says so.

Suffixes: B completions, S states, A actions, L completion positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

View = Literal["token", "chunk", "turn"]
Turn = tuple[int, int]
"""Tokens that the assistant wrote, and tokens that the environment answered with (0 where it did not)."""


@dataclass(frozen=True, slots=True)
class ActionView:
    """The states and actions of B completions; all int64.

    `sequence_S`, `position_S`: the completion a state belongs to, and how many completion tokens come before it.
    `sequence_A`, `state_A`: an action's completion, and the index of the state it is taken in; the next one is
    `next_state_A`. `end_A`: the completion position behind the action's own last token; the environment's tokens, if
    any, lie between it and the next state. `actions_B`: how many actions each completion has.
    """

    sequence_S: Tensor
    position_S: Tensor
    sequence_A: Tensor
    state_A: Tensor
    end_A: Tensor
    actions_B: Tensor

    @property
    def next_state_A(self) -> Tensor:
        return self.state_A + 1

    @property
    def first_state_B(self) -> Tensor:
        """Index of the state that each completion begins in: the prompt alone."""
        return self.last_action_B + 1 - self.actions_B + torch.arange(len(self.actions_B))

    @property
    def last_action_B(self) -> Tensor:
        """Index of each completion's last action."""
        return self.actions_B.cumsum(0) - 1

    @property
    def is_last_A(self) -> Tensor:
        last_A = torch.zeros(len(self.state_A), dtype=torch.bool)
        last_A[self.last_action_B] = True
        return last_A

    @property
    def start_A(self) -> Tensor:
        """The completion position of each action's first token."""
        return self.position_S[self.state_A]

    @property
    def tokens_A(self) -> Tensor:
        """How many tokens each action consists of, without the environment's."""
        return self.end_A - self.start_A

    def is_end_BL(self, length: int) -> Tensor:
        """True at the last token of every action, (B, length) bool. `length` is at least the longest completion's."""
        mask_BL = torch.zeros(len(self.actions_B), length, dtype=torch.bool)
        mask_BL[self.sequence_A, self.end_A - 1] = True
        return mask_BL

    def is_own_BL(self, length: int) -> Tensor:
        """True at every token that the policy wrote, (B, length) bool."""
        edge_BL = torch.zeros(len(self.actions_B), length + 1, dtype=torch.long)
        one_A = torch.ones_like(self.state_A)
        edge_BL.index_put_((self.sequence_A, self.start_A), one_A, accumulate=True)
        edge_BL.index_put_((self.sequence_A, self.end_A), -one_A, accumulate=True)
        return edge_BL.cumsum(1)[:, :length] > 0


def view_actions(
    view: View,
    lengths: Sequence[int],
    *,
    chunk_tokens: int | None = None,
    turns: Sequence[Sequence[Turn]] | None = None,
) -> ActionView:
    """The actions of completions with `lengths` tokens.

    token: every token is an action. chunk: every `chunk_tokens` tokens are, the last of them may be shorter. turn: each
    of `turns[b]` is, an assistant's part followed by the environment's; the parts of a completion add up to its length.

    Raises ValueError for a view without what it needs, a completion without tokens, or turns that do not add up.
    """
    for number, length in enumerate(lengths):
        if length < 1:
            raise ValueError(f"completion {number} has {length} tokens: it has no action, leave it out of the batch")
    if view == "token":
        parts = [[(1, 0)] * length for length in lengths]
    elif view == "chunk":
        if chunk_tokens is None or chunk_tokens < 1:
            raise ValueError(f"the chunk view needs chunk_tokens, at least 1, and got {chunk_tokens}")
        parts = [[(min(chunk_tokens, n - start), 0) for start in range(0, n, chunk_tokens)] for n in lengths]
    elif view == "turn":
        if turns is None or len(turns) != len(lengths):
            raise ValueError(
                f"the turn view needs the turns of each of {len(lengths)} completions, and got "
                f"{'none' if turns is None else len(turns)}"
            )
        parts = turns
        for number, (own, length) in enumerate(zip(turns, lengths, strict=True)):
            _check_turns(own, length, f"completion {number}")
    else:
        raise ValueError(f"unknown view {view!r}: choose token, chunk or turn")
    return _lay_out(parts)


def _check_turns(turns: Sequence[Turn], length: int, place: str) -> None:
    for number, (own, environment) in enumerate(turns):
        if own < 1 or environment < 0:
            raise ValueError(
                f"{place}: turn {number} has {own} tokens of the assistant and {environment} of the environment: the "
                "assistant writes at least one, so join parts of the environment that follow each other"
            )
    total = sum(map(sum, turns))
    if total != length:
        raise ValueError(f"{place}: its turns have {total} tokens together, and it has {length}")


def _lay_out(parts: Sequence[Sequence[Turn]]) -> ActionView:
    sequence_S, position_S, state_A, end_A = [], [], [], []
    for number, turns in enumerate(parts):
        starts = list(accumulate(map(sum, turns), initial=0))
        state_A += range(len(position_S), len(position_S) + len(turns))
        end_A += [start + own for start, (own, _) in zip(starts, turns, strict=False)]
        position_S += starts
        sequence_S += [number] * len(starts)
    sequence_S, state_A = torch.tensor(sequence_S, dtype=torch.long), torch.tensor(state_A, dtype=torch.long)
    return ActionView(
        sequence_S=sequence_S,
        position_S=torch.tensor(position_S, dtype=torch.long),
        sequence_A=sequence_S[state_A],
        state_A=state_A,
        end_A=torch.tensor(end_A, dtype=torch.long),
        actions_B=torch.tensor([len(turns) for turns in parts], dtype=torch.long),
    )


def outcome_rewards(actions: ActionView, outcome_B: Tensor) -> Tensor:
    """Each action's reward where a completion as a whole is graded: the outcome at its last action, 0 before; (A,).

    Raises ValueError for another number of outcomes than of completions.
    """
    if outcome_B.shape != actions.actions_B.shape:
        raise ValueError(f"outcomes of shape {tuple(outcome_B.shape)} for {len(actions.actions_B)} completions")
    reward_A = outcome_B.new_zeros(len(actions.state_A))
    reward_A[actions.last_action_B] = outcome_B
    return reward_A


def summed_rewards(actions: ActionView, reward_BL: Tensor) -> Tensor:
    """Each action's reward where tokens are graded, the environment's too: the sum from the action's first token to the
    next state; (A,), in the precision of `reward_BL`.

    Raises ValueError where a completion is longer than L.
    """
    longest = int(actions.position_S.max())
    if reward_BL.shape[0] != len(actions.actions_B) or reward_BL.shape[1] < longest:
        raise ValueError(
            f"rewards of shape {tuple(reward_BL.shape)} for {len(actions.actions_B)} completions of up to {longest} "
            "tokens: give one row a completion and one column a token"
        )
    # differences of running sums lose digits: float64
    total_BL = torch.nn.functional.pad(reward_BL.double().cumsum(1), (1, 0))
    stop_A = actions.position_S[actions.next_state_A]
    earned_A = total_BL[actions.sequence_A, stop_A] - total_BL[actions.sequence_A, actions.start_A]
    return earned_A.to(reward_BL.dtype)


def is_done(actions: ActionView, truncated_B: Tensor) -> Tensor:
    """True where an action ends its episode, (A,) bool: the last one of a completion that was not cut at the length
    limit. A truncated completion goes on in the state behind its cut, whose value a target bootstraps from.

    Raises ValueError for another number of flags than of completions.
    """
    if truncated_B.shape != actions.actions_B.shape:
        raise ValueError(f"truncated_B of shape {tuple(truncated_B.shape)} for {len(actions.actions_B)} completions")
    return actions.is_last_A & ~truncated_B.bool()[actions.sequence_A]
