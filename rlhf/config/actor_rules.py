"""What does not go with the way in which a policy follows an optimistic critic (`actor`), with the remedies."""

from typing import Any

from rlhf.config.algorithm import PolicyGradientConfig

POLICY_LOSS = ("entropy_coefficient", "mask_truncated", "clip_low", "clip_high", "dual_clip")
"""Settings of the clipped policy gradient that no preset of the optimistic actor-critic changes."""


def actor_problems(algorithm: Any) -> list[str]:
    """Within `algorithm`; each problem a line."""
    ensemble, actor, problems = algorithm.ensemble, algorithm.actor, []
    if actor.kind == "logit_match" and not ensemble.values_tokens:
        problems.append(
            f"actor.kind = logit_match with ensemble.target = {ensemble.target}: there are no values of tokens to "
            "match; set actor.kind to pg, or use actions.view token with target soft or max"
        )
    if ensemble.values_tokens and 0 < actor.trace_decay < 1:
        problems.append(
            f"actor.trace_decay = {actor.trace_decay:g}, ensemble.target = {ensemble.target}: tokens' values are "
            "compared with each other, not with what followed; leave it out, or set ensemble.target to expectile"
        )
    if actor.replay_episodes and actor.kind != "logit_match":
        problems.append(
            f"actor.replay_episodes = {actor.replay_episodes} with actor.kind = {actor.kind}: it learns from no kept "
            "states; set it to 0, or actor.kind to logit_match"
        )
    return problems + _reset_problems(algorithm) + _loss_problems(algorithm)


def _reset_problems(algorithm: Any) -> list[str]:
    actor, problems = algorithm.actor, []
    if algorithm.sync.when == "switch" and actor.reset != "jump":
        problems.append(
            f"sync.when = switch with actor.reset = {actor.reset}: kappa would never grow, as the policy moves once an "
            "exchange; set actor.reset to jump, or sync.when to phase"
        )
    if actor.kind == "pg" and actor.reset == "none":
        defaults = type(actor)()
        pulls = ("kappa", "schedule", "saturation")
        given = [f"actor.{name}" for name in pulls if getattr(actor, name) != getattr(defaults, name)]
        if given:
            problems.append(
                f"{', '.join(given)}: a policy gradient that is never reset has no pull to "
                "the reference that could grow; leave them out, or set actor.reset to target"
            )
    return problems


def _loss_problems(algorithm: Any) -> list[str]:
    """Settings of a loss that is not there."""
    kind = algorithm.actor.kind
    if kind == "pg":
        return []
    given = [
        name for name in POLICY_LOSS if getattr(algorithm, name) != PolicyGradientConfig.model_fields[name].default
    ]
    given += ["whiten"] if algorithm.whiten else []
    given += ["mismatch.level"] if algorithm.mismatch.level != "off" else []
    why = "there is none" if kind == "implicit" else "that is a regression on values of tokens"
    return [f"{name} changes the policy's loss, and with actor.kind = {kind} {why}: leave it out" for name in given]
