"""What does not go with a policy that is never trained, only guided at every token (`actor.kind: implicit`), with the
remedies."""

from typing import Any

IMPLICIT = "actor.kind = implicit"


def guided_algorithm_problems(algorithm: Any) -> list[str]:
    """Within `algorithm`; empty for other actors."""
    actor = algorithm.actor
    if actor.kind != "implicit":
        return []
    problems, target, view = [], algorithm.ensemble.target, algorithm.actions.view
    if view != "token":
        problems.append(
            f"{IMPLICIT} with actions.view = {view}: tokens are drawn one by one, and {view}s have no values before "
            "they are written; set actions.view to token with ensemble.target soft or max, or actor.kind to pg"
        )
    elif target not in ("soft", "max"):
        why = (
            "the policy's log-probs at kept states are those of its weights, which do not know the guidance"
            if target == "policy" else "there are no values of tokens to guide by"
        )  # fmt: skip
        problems.append(
            f"{IMPLICIT} with ensemble.target = {target}: {why}; set ensemble.target to soft or max, or choose another "
            "actor.kind"
        )
    if actor.reset == "hard":
        problems.append(f"{IMPLICIT} with actor.reset = hard: no weights have moved; set actor.reset to target or jump")
    if actor.reset == "none":
        problems.append(
            f"{IMPLICIT} with actor.reset = none: old critics are not kept, so there are no old goals; set actor.reset "
            "to jump or target"
        )
    return problems


def guided_run_problems(config: Any) -> list[str]:
    """Between `algorithm` and the other sections of a recipe; empty for other actors."""
    if config.algorithm.actor.kind != "implicit":
        return []
    engine, model, batch, problems = config.engine, config.model, config.batch, []
    place = f"algorithm.{IMPLICIT}"
    if engine.type != "transformers":
        problems.append(
            f"{place} with engine.type = {engine.type}: the critic is asked at every token, which only the "
            "transformers engine can do; set engine.type to transformers, or algorithm.actor.kind to logit_match"
        )
    if model.lora is not None:
        problems.append(f"{place} trains no weights, so adapters have no use: leave model.lora out")
    if model.gradient_checkpointing:
        problems.append(f"{place} has no backward pass of the model: set model.gradient_checkpointing to false")
    for name in ("optimizer", "schedule"):
        section = getattr(config, name)
        if section != type(config).model_fields[name].default:
            problems.append(
                f"{name} is the policy's, and with {place} it is never trained: leave the section out; the critic's "
                "learning rate is algorithm.ensemble.lr"
            )
    for name in ("minibatches", "epochs"):
        if getattr(batch, name) != 1:
            problems.append(
                f"batch.{name} = {getattr(batch, name)} divides or repeats the policy's updates, and with {place} "
                f"there are none: set batch.{name} to 1; the critic's are algorithm.ensemble.updates"
            )
    return problems
