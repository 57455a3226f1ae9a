"""A stream of questions, each thought about for n tokens before it is answered: what is a token worth?

An answer after n tokens of thought is right with probability 1 - 0.8 x 0.6^n, n at most 8. Per episode it pays to think
to the end (gain 0.986563), per token to think once (0.52 / 2 = 0.26).
"""

import copy
from dataclasses import dataclass

import numpy as np
import torch

from rlhf.algorithms.average_reward import (
    ActionCosts,
    GainUnit,
    RenewalGain,
    anchored_gain,
    differential_errors,
    gain_alarm,
)
from rlhf.algorithms.mdp_views import is_done, outcome_rewards, view_actions
from rlhf.algorithms.value_targets import end_values, max_value, member_losses, polyak_update
from rlhf.models.critic import DuelingEnsemble
from tests.tiny_transformer import TinyTransformer

LONGEST, THINK, ANSWER = 8, 0, 1
# with 16 episodes an iteration the data's own best number of thoughts is 7 in one seed of three
EPISODES, STEPS, POLYAK, LEARNING_RATE = 256, 10, 0.05, 2e-3
RANDOM_SHARE, LEAST_WEIGHT = 0.4, 0.02
COSTS: dict[GainUnit, ActionCosts] = {"token": ActionCosts(0, 1), "episode": ActionCosts(1, 0)}


@dataclass(frozen=True)
class Outcome:
    """`thoughts`: of the greedy policy. `gain`, `start_value`: the members' means. `alarm`: learned gain and renewal
    estimate (`renewal`) disagreed at some time in the second half: a gain that is too fast swings through the right
    one."""

    thoughts: int
    gain: float
    start_value: float
    renewal: float
    alarm: bool


def right_probability(thoughts: int | np.ndarray) -> float | np.ndarray:
    return 1 - 0.8 * 0.6**thoughts


class StreamCritic(torch.nn.Module):
    """Q(n thoughts, think or answer), (9, K, 2)."""

    def __init__(self, members: int, seed: int) -> None:
        super().__init__()
        self.trunk = TinyTransformer(2, LONGEST)
        width = self.trunk.width
        self.register_buffer("candidate_Sme", torch.randn(2, width).expand(LONGEST + 1, -1, -1).clone())
        self.heads = DuelingEnsemble(width, members=members, v_min=-2.0, v_max=2.0, prior_scale=0.0, seed=seed)
        # behind the last thought only an answer is left
        self.register_buffer("logp_Sm", torch.full((LONGEST + 1, 2), 0.5).log())
        self.logp_Sm[LONGEST, THINK] = -torch.inf

    def forward(self) -> torch.Tensor:
        hidden_Sd = self.trunk(torch.full((1, LONGEST), THINK))[0]
        return self.heads(hidden_Sd, self.candidate_Sme, self.logp_Sm).q_NKm

    @torch.no_grad()
    def values(self) -> torch.Tensor:
        return max_value(self(), self.logp_Sm)


def greedy_thoughts(q_SKm: torch.Tensor) -> int:
    prefers_answer_S = (q_SKm[:, :, ANSWER] >= q_SKm[:, :, THINK]).float().mean(1) >= 0.5
    return int(prefers_answer_S[:LONGEST].nonzero()[0]) if prefers_answer_S[:LONGEST].any() else LONGEST


def run_stream(seed: int, unit: GainUnit, gain_rate: float, *, iterations: int = 300, members: int = 2) -> Outcome:
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    critic = StreamCritic(members, seed)
    slow = copy.deepcopy(critic)
    slow_value_NK = slow.values()
    optimizer = torch.optim.Adam(critic.parameters(), LEARNING_RATE, foreach=True)
    gain_K = torch.zeros(members)
    renewal, alarm = RenewalGain(), False
    # one episode for each number of thoughts, with the mean of its outcomes and weighted by how often it came
    actions = view_actions("token", [thoughts + 1 for thoughts in range(LONGEST + 1)])
    done_A = is_done(actions, torch.zeros(LONGEST + 1, dtype=torch.bool))
    cost_A = COSTS[unit](actions, unit)
    position_A, taken_A = actions.start_A, torch.where(actions.is_last_A, ANSWER, THINK)
    # the state behind an answer is over: any position does for it
    position_S = actions.position_S.clamp_max(LONGEST)
    count_B, right_B = np.zeros(LONGEST + 1), np.zeros(LONGEST + 1)

    for iteration in range(iterations):
        with torch.no_grad():
            greedy = greedy_thoughts(critic())
        own = random.binomial(EPISODES, right_probability(greedy))
        renewal.update(own, EPISODES * (greedy + 1 if unit == "token" else 1))
        is_random_BL = random.random((EPISODES, LONGEST + 1)) < RANDOM_SHARE
        chance_BL = random.integers(2, size=is_random_BL.shape) == ANSWER
        answers_BL = np.where(is_random_BL, chance_BL, np.arange(LONGEST + 1) >= greedy)
        answers_BL[:, LONGEST] = True
        new_B = np.bincount(answers_BL.argmax(1), minlength=LONGEST + 1)
        count_B += new_B
        right_B += random.binomial(new_B, right_probability(np.arange(LONGEST + 1)))
        outcome_B = torch.tensor(right_B / np.maximum(count_B, 1), dtype=torch.float)
        share_B = torch.tensor(count_B / count_B.sum(), dtype=torch.float)
        weight_A = torch.where(share_B > 0, share_B.clamp_min(LEAST_WEIGHT), 0.0)[actions.sequence_A]
        reward_A = outcome_rewards(actions, outcome_B)
        for _ in range(STEPS):
            q_AK = critic()[position_A, :, taken_A]
            end_SK = end_values(slow_value_NK[position_S], actions, done_A)
            error_AK = differential_errors(q_AK, end_SK, reward_A, cost_A, gain_K, actions)
            loss = member_losses(error_AK.square(), weight_N=weight_A).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            polyak_update(slow, critic, POLYAK)
            slow_value_NK = slow.values()
            gain_K = anchored_gain(gain_K, slow_value_NK[:1], gain_rate)
        gain = float(gain_K.mean())
        alarm |= iteration >= iterations // 2 and gain_alarm(gain, renewal.gain, 1.0, switches=3)
    with torch.no_grad():
        thoughts = greedy_thoughts(critic())
    return Outcome(thoughts, gain, float(slow_value_NK[0].mean()), renewal.gain, alarm)
