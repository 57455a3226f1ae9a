"""Which recipes may learn from samples of older weights, and what they need for it."""

from typing import Any

REASONS = {
    "capo": "CAPO judges the step that each token would make by its gradient, and does not know of the correction's "
    "weight on it",
    "vpo": "losses of pairs have no importance ratio that could correct for older weights",
    "optimistic_actor_critic": "the policy jumps where the critic is exchanged, and the engine follows when it moved: "
    "samples of some steps before may be of another policy altogether",
    "loop": "the policy is planned anew at exchanges, and the engine follows when it moved: samples of some steps "
    "before may be of another policy altogether",
}
"""Why not, by `algorithm.type`."""


def staleness_contradictions(config: Any) -> list[str]:
    """What forbids `batch.staleness` here, with the remedy; empty where it is 0."""
    if not config.batch.staleness:
        return []
    place, kind = f"batch.staleness = {config.batch.staleness}", config.algorithm.type
    if kind in REASONS:
        return [f"{place} with algorithm.type = {kind}: {REASONS[kind]}; set batch.staleness to 0"]
    if config.algorithm.mismatch.level == "off":
        return [
            f"{place} learns from samples of older weights, and algorithm.mismatch.level = off corrects for nothing: "
            "set algorithm.mismatch.level to token or sequence, or batch.staleness to 0"
        ]
    return []


def staleness_remarks(config: Any) -> list[str]:
    """What is legal but may surprise."""
    if config.batch.staleness < 2:
        return []
    return [
        f"batch.staleness = {config.batch.staleness}: a step still generates one batch and waits for it, so that more "
        "than 1 makes samples older and nothing faster"
    ]
