"""A lock of H tokens, and an optimistic actor-critic of the library's parts that opens it.

A wrong token ends the episode; a wrong first one pays 0.1, all H right ones pay 1. The uniform policy opens a lock of 6
tokens out of 6 with probability 2.1e-5: whoever only repeats what paid learns to fail at once.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rlhf.algorithms.mdp_views import ActionView, is_done, summed_rewards, view_actions
from rlhf.algorithms.mirror_descent import KappaSchedule, MirrorDescent, logit_match_losses, mirror_target, with_rest
from rlhf.algorithms.optimism import Optimism
from rlhf.algorithms.switching import SwitchController, excess_loss, train_until_member
from rlhf.algorithms.value_targets import end_values, max_value, member_losses, one_step_targets, polyak_update
from rlhf.data.episodes import Episode
from rlhf.data.replay_buffer import ReplayBuffer
from rlhf.models.critic import DuelingEnsemble
from tests.tiny_transformer import TinyPolicy, TinyTransformer

VOCABULARY = 6
ROLLOUTS, STEPS, LEARNING_RATE, POLYAK = 8, 25, 3e-3, 0.1
TOLERANCE, MULTIPLE = 0.1, 5.0
KAPPA_STEP = 8.0
UNIFORM = -torch.tensor(float(VOCABULARY)).log()


@dataclass(frozen=True)
class Outcome:
    """`first_success`: episodes until the lock opened first, None if it never did. `final_return`: mean of the last ten
    iterations. `least_start_value`: of the guiding critic, in the state before the first token."""

    first_success: int | None
    final_return: float
    switches: int = 0
    least_start_value: float = 1.0


class Lock:
    """The lock of a seed; it grades sequences of tokens."""

    def __init__(self, seed: int, length: int = 6) -> None:
        self.length = length
        self.secret = torch.randint(VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed + 77))
        self.tried = 0

    def episodes(self, token_ids_BH: Tensor) -> list[Episode]:
        found = []
        for row in token_ids_BH:
            wrong = (row != self.secret).nonzero()[:, 0].tolist()
            length = wrong[0] + 1 if wrong else self.length
            paid = 1.0 if not wrong else 0.1 if length == 1 else 0.0
            episode = Episode(
                id=str(self.tried), prompt_id="lock", prompt_ids=[], token_ids=row[:length], logps=[0.0] * length,
                rewards=[0.0] * (length - 1) + [paid], policy_version=0,
            )
            found.append(episode)
            self.tried += 1
        return found

    def offline(self, count: int) -> list[Episode]:
        """Each token is right with probability 0.75."""
        is_copied = torch.rand(count, self.length) < 0.7
        return self.episodes(torch.where(is_copied, self.secret, torch.randint(VOCABULARY, (count, self.length))))


@torch.no_grad()
def sample(policy: TinyPolicy, count: int, length: int) -> Tensor:
    """(count, length) token ids; what follows a wrong token is never looked at."""
    token_ids_BL = torch.zeros(count, 0, dtype=torch.long)
    for _ in range(length):
        drawn_B1 = policy(token_ids_BL)[:, -1].exp().multinomial(1)
        token_ids_BL = torch.cat([token_ids_BL, drawn_B1], dim=1)
    return token_ids_BL


@dataclass(frozen=True)
class Experience:
    """What is stored, each sequence once. `count_A`: how often its action was taken. `prior_Sd`: states of the
    trunk that the priors read."""

    token_ids_BL: Tensor
    actions: ActionView
    taken_A: Tensor
    reward_A: Tensor
    done_A: Tensor
    count_A: Tensor
    prior_Sd: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, episodes: list[Episode], prior_trunk: TinyTransformer) -> "Experience":
        counts: dict[tuple[int, ...], int] = {}
        unique: dict[tuple[int, ...], Episode] = {}
        for episode in episodes:
            key = tuple(episode.token_ids.tolist())
            counts[key] = counts.get(key, 0) + 1
            unique[key] = episode
        actions = view_actions("token", [len(key) for key in unique])
        longest = int(actions.actions_B.max())
        token_ids_BL, reward_BL = torch.zeros(len(unique), longest, dtype=torch.long), torch.zeros(len(unique), longest)
        for row, (key, episode) in enumerate(unique.items()):
            token_ids_BL[row, : len(key)] = torch.tensor(key)
            reward_BL[row, : len(key)] = torch.from_numpy(episode.rewards)
        return cls(
            token_ids_BL=token_ids_BL,
            actions=actions,
            taken_A=token_ids_BL[actions.sequence_A, actions.start_A],
            reward_A=summed_rewards(actions, reward_BL),
            done_A=is_done(actions, torch.zeros(len(unique), dtype=torch.bool)),
            count_A=torch.tensor(list(counts.values()), dtype=torch.float)[actions.sequence_A],
            prior_Sd=prior_trunk(token_ids_BL)[actions.sequence_S, actions.position_S],
        )

    def states(self, hidden_BLd: Tensor) -> Tensor:
        return hidden_BLd[self.actions.sequence_S, self.actions.position_S]


class LockCritic(nn.Module):
    """Action values of all tokens, from a trunk that learns and priors on one that does not."""

    def __init__(self, length: int, members: int, prior_scale: float, seed: int, initial_value: float) -> None:
        super().__init__()
        self.trunk = TinyTransformer(VOCABULARY, length)
        width = self.trunk.width
        self.register_buffer("embedding_me", torch.randn(VOCABULARY, width))
        self.heads = DuelingEnsemble(
            width, members=members, prior_scale=prior_scale, initial_value=initial_value, seed=seed
        )

    def forward(self, experience: Experience) -> Tensor:
        """(S, K, m)."""
        hidden_Sd = experience.states(self.trunk(experience.token_ids_BL))
        states = len(hidden_Sd)
        candidate_Sme = self.embedding_me.expand(states, -1, -1)
        return self.heads(hidden_Sd, candidate_Sme, UNIFORM.expand(states, VOCABULARY), experience.prior_Sd).q_NKm


def run_actor_critic(
    seed: int, *, iterations: int = 120, optimism: Optimism = Optimism(bonus=3.0), prior_scale: float = 1.0,
    initial_value: float = 0.5, offline: int = 0, members: int = 8, length: int = 6,
) -> Outcome:
    torch.manual_seed(seed)
    lock, policy = Lock(seed, length), TinyPolicy(VOCABULARY, length)
    prior_trunk = TinyTransformer(VOCABULARY, length)
    critic = LockCritic(length, members, prior_scale, seed, initial_value)
    slow, guide = copy.deepcopy(critic), copy.deepcopy(critic)
    critic_optimizer = torch.optim.Adam(critic.parameters(), LEARNING_RATE, foreach=True)
    policy_optimizer = torch.optim.Adam(policy.parameters(), LEARNING_RATE, foreach=True)
    buffer = ReplayBuffer(seed=seed, offline=lock.offline(offline))
    controller = SwitchController("excess", threshold=MULTIPLE * TOLERANCE, min_iters=1, max_iters=None)
    schedule = KappaSchedule(kappa_max=KAPPA_STEP * iterations, n_sat=iterations)
    actor = MirrorDescent(schedule, "target")
    returns, first_success, least_start_value = [], None, 1.0
    for iteration in range(iterations):
        new = lock.episodes(sample(policy, ROLLOUTS, length))
        buffer.add(new)
        returns.append(sum(episode.episode_return for episode in new) / ROLLOUTS)
        if first_success is None and any(episode.episode_return == 1 for episode in new):
            first_success = (iteration + 1) * ROLLOUTS
        experience = Experience.of([*buffer.offline, *buffer.online], prior_trunk)

        def critic_step() -> None:
            train_critic(critic, slow, critic_optimizer, experience)  # noqa: B023, used within its iteration

        def excess(of: LockCritic) -> float:
            return lock_excess(of, experience, optimism)  # noqa: B023

        for _ in range(STEPS):
            critic_step()
        if controller.decide(excess(guide)).cause:
            if train_until_member(critic_step, lambda: excess(critic), tolerance=TOLERANCE) < excess(guide):
                guide.load_state_dict(critic.state_dict())
                controller.switched()
                actor.reset()
            else:
                controller.refused()
        actor.advance()
        start_value = match_policy(policy, policy_optimizer, guide, experience, optimism, actor.kappa)
        least_start_value = min(least_start_value, start_value)
    return Outcome(first_success, sum(returns[-10:]) / 10, controller.switches, least_start_value)


def train_critic(critic: LockCritic, slow: LockCritic, optimizer: torch.optim.Optimizer, data: Experience) -> None:
    with torch.no_grad():
        value_SK = max_value(slow(data), UNIFORM.expand(len(data.actions.sequence_S), VOCABULARY)).clamp(0, 1)
        target_AK = one_step_targets(data.reward_A, end_values(value_SK, data.actions, data.done_A), data.actions)
    q_AKm = critic(data)[data.actions.state_A]
    q_AK = q_AKm.gather(-1, data.taken_A[:, None, None].expand(-1, q_AKm.shape[1], 1)).squeeze(-1)
    loss = member_losses((q_AK - target_AK).square()).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    polyak_update(slow, critic, POLYAK)


@torch.no_grad()
def lock_excess(critic: LockCritic, data: Experience, optimism: Optimism) -> float:
    """Of the optimistic values. Nothing is random here, so that the least possible error is 0."""
    q_Sm = optimism(critic(data))
    end_S1 = end_values(q_Sm.amax(-1, keepdim=True), data.actions, data.done_A)
    target_A = one_step_targets(data.reward_A, end_S1, data.actions)[:, 0]
    error_A = q_Sm[data.actions.state_A, data.taken_A] - target_A
    return excess_loss(error_A, torch.zeros_like(error_A), int(data.count_A.sum()), data.count_A)


def match_policy(
    policy: TinyPolicy, optimizer: torch.optim.Optimizer, guide: LockCritic, data: Experience, optimism: Optimism,
    kappa: float,
) -> float:
    """An actor phase; the guiding critic's value of the first state."""
    with torch.no_grad():
        q_Sm = optimism(guide(data))
    state_A = data.actions.state_A
    base_AC = with_rest(UNIFORM.expand(len(state_A), VOCABULARY))
    target_AC = mirror_target(base_AC, q_Sm[state_A], kappa)
    for _ in range(STEPS):
        logp_Am = data.states(policy(data.token_ids_BL))[state_A]
        loss = logit_match_losses(target_AC, with_rest(logp_Am)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(q_Sm[0].max())


def run_policy_gradient(seed: int, iterations: int = 120) -> Outcome:
    """Group-relative policy gradient with the same rollouts."""
    torch.manual_seed(seed)
    lock = Lock(seed)
    policy = TinyPolicy(VOCABULARY, lock.length)
    optimizer = torch.optim.Adam(policy.parameters(), LEARNING_RATE)
    returns, first_success = [], None
    for iteration in range(iterations):
        token_ids_BH = sample(policy, ROLLOUTS, lock.length)
        episodes = lock.episodes(token_ids_BH)
        return_B = torch.tensor([episode.episode_return for episode in episodes])
        returns.append(float(return_B.mean()))
        if first_success is None and (return_B == 1).any():
            first_success = (iteration + 1) * ROLLOUTS
        actions = view_actions("token", [len(episode.token_ids) for episode in episodes])
        advantage_B = (return_B - return_B.mean()) / (return_B.std() + 1e-4)
        logp_BHm = policy(token_ids_BH)[:, : lock.length]
        logp_BH = logp_BHm.gather(-1, token_ids_BH[..., None]).squeeze(-1)
        loss = -(advantage_B[actions.sequence_A] * logp_BH[actions.sequence_A, actions.start_A]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return Outcome(first_success, sum(returns[-10:]) / 10)
