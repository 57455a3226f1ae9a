"""Samples as JSON, and back: what was generated and not yet learned from outlives the process."""

from collections.abc import Mapping
from typing import Any

from rlhf.data.types import Prompt, Sample, Verdict


def sample_to_json(sample: Sample) -> dict[str, Any]:
    """All of a sample, as JSON types."""
    prompt, verdict = sample.prompt, sample.verdict
    return {
        "prompt": {
            "id": prompt.id,
            "token_ids": prompt.token_ids,
            "text": prompt.text,
            "columns": dict(prompt.columns),
            "scorer": prompt.scorer,
        },
        "index": sample.index,
        "completion_ids": sample.completion_ids,
        "logps": sample.logps,
        "finish_reason": sample.finish_reason,
        "policy_version": sample.policy_version,
        "seed": sample.seed,
        "text": sample.text,
        "rewards": dict(sample.rewards),
        "reward": sample.reward,
        "verdict": verdict and [verdict.outcome, verdict.extracted, verdict.reason, verdict.timed_out],
        "turns": sample.turns,
        "turn_rewards": sample.turn_rewards,
        "messages": sample.messages,
    }


def sample_from_json(record: Mapping[str, Any]) -> Sample:
    """What `sample_to_json` was given."""
    record = dict(record)
    prompt, verdict = dict(record.pop("prompt")), record.pop("verdict")
    prompt["token_ids"] = tuple(prompt["token_ids"])
    record["completion_ids"] = tuple(record["completion_ids"])
    record["logps"] = tuple(record["logps"])
    record["turns"] = tuple((own, environment) for own, environment in record.get("turns", ()))
    record["turn_rewards"] = tuple(record.get("turn_rewards", ()))
    record["messages"] = tuple(record.get("messages", ()))
    return Sample(prompt=Prompt(**prompt), verdict=verdict and Verdict(*verdict), **record)
