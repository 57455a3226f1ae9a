"""The parts of a value-based recipe: actions, the ensemble of critics, optimism, exchanges, the actor, offline data."""

from typing import Literal

from pydantic import Field, model_validator

from rlhf.config.section import Section


class ActionViewConfig(Section):
    """What counts as one action of a completion, and what it can earn."""

    view: Literal["token", "chunk", "turn"] = "chunk"
    """Every token, every `chunk_tokens` tokens, or every turn of a dialogue (`data` with an environment)."""
    chunk_tokens: int = Field(32, ge=1)
    """Tokens of a chunk. The theory's cost grows with the number of actions, not of tokens."""
    bounds: tuple[float, float] = (0.0, 1.0)
    """The smallest and the largest return of an episode; values are clipped to them."""
    truncation: Literal["end", "bootstrap"] = "end"
    """A completion that was cut off is over, with the reward that it got; or it goes on, worth what the critic says of
    its last state: only where the limit is one of the rollouts and not of the task, for an optimistic critic promises
    much of what was never finished, and completions grow to the limit."""

    @model_validator(mode="after")
    def _refuse_an_empty_range(self) -> "ActionViewConfig":
        if not self.bounds[0] < self.bounds[1]:
            raise ValueError(f"bounds = {list(self.bounds)} is no range: give the smallest and the largest return")
        return self


class EnsembleConfig(Section):
    """The critic: an ensemble on the reference's hidden states, which no update of the policy moves."""

    target: Literal["expectile", "soft", "max", "policy", "mc_ref"] = "expectile"
    """What values of states are. expectile: an in-sample maximum over what was done, and the only one for chunks and
    turns besides mc_ref. soft, max: over candidate tokens, with and without KL (actions.view token). policy: of the
    policy as it is (DOUHUA). mc_ref: soft optimal values by returns of the reference's own completions (Q#)."""
    members: int = Field(10, ge=2)
    """Of the ensemble; their spread is the uncertainty."""
    prior_scale: float = Field(0.3, ge=0)
    """Size of the members' fixed random parts, in units of the range. Without them members collapse onto each other."""
    initial_share: float = Field(0.5, gt=0, lt=1)
    """Where between the bounds values begin. The middle is optimism already, where most returns are below it."""
    bootstrap: float = Field(0.8, gt=0, le=1)
    """Chance that a member learns from an episode."""
    expectile: float = Field(0.9, ge=0.5, lt=1)
    """Target expectile: above one half values lean to the best of what was seen. 0.7 where the environment is random,
    whose luck it would count as skill."""
    trace_decay: float = Field(1.0, ge=0, le=1)
    """Target expectile: lambda of the returns that are regressed on. 1: what was earned from a state on. Below,
    targets bootstrap; but next to no state of a text is seen twice, so there is nothing to stitch together, and the
    expectile takes the values' own noise for the best of what was tried, anew at each action."""
    temperature: float = Field(0.05, gt=0)
    """Targets soft and mc_ref: tau, the KL coefficient of the optimum that is aimed at."""
    candidates: int = Field(32, ge=1)
    """Targets soft, max and policy: likely tokens of the reference at each state, besides the one that was taken."""
    path_spans: list[int] = []
    """Target soft: adds the path consistency residuals over so many actions (0: to the end of the completion), which
    carry credit over long responses."""
    lr: float = Field(1e-3, gt=0)
    """Learning rate of the ensemble."""
    polyak: float = Field(0.05, gt=0, le=1)
    """Rate at which the copy that targets are made of follows."""
    updates: int = Field(32, ge=1)
    """Critic steps in each step of the run."""
    pretrain_updates: int = Field(0, ge=0)
    """More critic steps, once, before the first exchange: on offline episodes and the first rollouts."""
    episodes: int = Field(128, ge=1)
    """Episodes of a critic step, over all ranks."""
    buffer_episodes: int = Field(20_000, ge=1)
    """Episodes that are kept, on each rank; those that stand out among their prompt's are never dropped."""
    buffer_gib: float = Field(4.0, gt=0)
    """Memory of the kept episodes and their states, on each rank."""

    @model_validator(mode="after")
    def _refuse_spans_without_residuals(self) -> "EnsembleConfig":
        if self.path_spans and self.target != "soft":
            raise ValueError(
                f"path_spans = {self.path_spans} with target = {self.target}: path consistency holds between soft "
                "values; set target to soft, or path_spans to []"
            )
        if any(span < 0 for span in self.path_spans):
            raise ValueError(f"path_spans = {self.path_spans}: a span has at least one action; 0 goes to the end")
        return self

    @property
    def values_tokens(self) -> bool:
        """Whether there are values of candidate tokens, and not of states alone."""
        return self.target in ("soft", "max", "policy")


class OptimismConfig(Section):
    """What the policy is told a state, or a token, is worth."""

    kind: Literal["ucb", "max_in_set", "lme", "elliptic", "mex", "none"] = "ucb"
    """ucb: mean plus spread of the members. max_in_set: the largest of those that fit unseen episodes as well as the
    best. lme: log-mean-exp. elliptic: mean plus how new the state is to linear features, in the targets too. mex: the
    mean, of members that were trained to promise much. none: the mean."""
    bonus_scale: float = Field(1.0, ge=0)
    """ucb: how many standard deviations. elliptic: times sqrt(phi' Lambda^-1 phi), in units of the range."""
    temperature: float = Field(0.05, gt=0)
    """lme: large gives the mean, small the maximum."""
    weight: float = Field(0.1, ge=0)
    """mex: of the prompts' values in the critic's loss, over the square root of the number of episodes."""


class SwitchConfig(Section):
    """When the critic that guides the policy is exchanged for the one that has learned on. Rarely: each exchange makes
    the policy start anew towards another goal."""

    kind: Literal["logdet", "infogain", "excess"] = "logdet"
    """logdet: linear features of what was done have brought `nats`. infogain: the same by the members' variance.
    excess: the frozen critic's error on unseen episodes exceeds the least possible one (the papers' rule)."""
    features: int = Field(64, ge=1)
    """Random directions of the states that are counted."""
    buckets: int = Field(1, ge=1)
    """Equal parts of the completion that are counted apart; the one with most nats decides."""
    nats: float = Field(8.0, gt=0)
    """logdet, infogain: exchange after so many."""
    noise: float = Field(0.1, gt=0)
    """infogain: the standard deviation of returns, in units of the range."""
    multiple: float = Field(5.0, gt=0)
    """excess: exchange above so many times the tolerance; 5 in NORA, 4 in LOOP (recalled from the papers)."""
    tolerance: float = Field(0.05, gt=0)
    """excess: the most that a critic may be off to be exchanged for, times range^2 (1 + log N), N the actions that
    ensemble.buffer_episodes hold."""
    refit_steps: int = Field(50, ge=1)
    """excess: steps of the copy that shows how small the error could be."""
    member_steps: int = Field(400, ge=0)
    """excess: steps that the learning critic gets to come within the tolerance; it is refused if it fits no better."""
    held_out: float = Field(0.1, gt=0, lt=1)
    """excess, max_in_set: the share of episodes that the critic never learns from."""
    min_steps: int = Field(2, ge=1)
    """Never sooner after the last exchange. Until the first one the critic alone learns."""
    max_steps: int = Field(16, ge=1)
    """Never later."""

    @model_validator(mode="after")
    def _refuse_an_empty_window(self) -> "SwitchConfig":
        if self.min_steps > self.max_steps:
            raise ValueError(f"min_steps = {self.min_steps} is above max_steps = {self.max_steps}: lower one of them")
        return self


class ActorConfig(Section):
    """How the policy follows the frozen critic, and what an exchange does to it."""

    kind: Literal["pg", "logit_match", "implicit"] = "pg"
    """pg: policy gradient on advantages of what was done. logit_match: regression to pi_ref exp(kappa Q) over candidate
    tokens at every state (needs values of tokens). implicit: nothing is trained, and rollouts are drawn from
    pi_ref exp(kappa Q) itself (needs values of tokens, and the transformers engine)."""
    trace_decay: float = Field(1.0, ge=0, le=1)
    """pg on values of states: how far an action's advantage looks. 1: to what the episode earned in the end, with the
    frozen values as a baseline; 0: to the next state's value, as in the paper; between them, lambda-returns."""
    reset: Literal["jump", "target", "hard", "none"] = "jump"
    """At an exchange: jump, the new goal at full strength; target, from the reference on again, step by step; hard, and
    the weights go back to the reference's too, so that pg learns again from the next step on; none, the old goals stay
    (for comparison)."""
    schedule: Literal["saturate", "anytime", "theory"] = "saturate"
    """How kappa grows with steps since the exchange: linearly over `saturation` steps; with the square root; by the
    bound's rate for 1000 steps, which is far too slow."""
    kappa: float = Field(20.0, gt=0)
    """The most that the goal leans on values, in nats for a whole unit of value. With pg the pull to the reference has
    the coefficient 1 / kappa."""
    saturation: int = Field(8, ge=1)
    """Steps to full strength."""
    steps: int | None = Field(None, ge=1)
    """Steps after an exchange in which the policy learns; it then stands still until the next. None: in all."""
    replay_episodes: int = Field(0, ge=0)
    """logit_match: kept episodes whose states are learned from besides the step's own, on each rank; rounded down to a
    multiple of batch.minibatches."""
    replay_offline: bool = True
    """logit_match: offline episodes are among them."""


class OfflineConfig(Section):
    """Episodes that others made, which the critic learns from besides the policy's own."""

    path: str | None = None
    """A .jsonl or .parquet file with `prompt`, `completion` (text or messages, as TRL has them) and `reward`."""
    share: float = Field(0.5, ge=0, le=1)
    """Of a critic's batch."""
    final_share: float = Field(0.5, ge=0, le=1)
    """What it falls to, linearly, by the end of the run."""
    coverage: Literal["warn", "error", "off"] = "warn"
    """Preset noah: what happens where offline data cannot tell the best play to `coverage_error`."""
    coverage_error: float = Field(0.05, gt=0)
    """In units of the range. The bound's constant is unknown, so the gate advises and proves nothing."""


class SyncConfig(Section):
    """When the engine gets the policy's weights."""

    when: Literal["phase", "switch"] = "phase"
    """phase: after every step that moved them. switch: the policy learns at exchanges only, and rollouts between them
    are of one version."""
