"""Rules between sections. Each sentence says what contradicts what, and the remedy."""

import importlib.util
from typing import Any

from rlhf.config.data import ARITHMETIC_HELD_OUT, ArithmeticConfig, DatasetConfig, RowsConfig
from rlhf.config.environment_rules import environment_contradictions
from rlhf.config.lengths import most_completion_tokens, most_own_tokens
from rlhf.config.optimizer import AdamW8bitConfig, FrugalConfig, libraries_of
from rlhf.config.optimizer_memory import MIN_SPLIT_DIM
from rlhf.config.rewards import CorrectnessConfig, SoftOverlongConfig
from rlhf.config.rollouts import VllmEngineConfig
from rlhf.config.sources import ConfigError
from rlhf.config.staleness_rules import staleness_contradictions, staleness_remarks

GROUP_ADVANTAGES = ("group_normalised", "group_mean", "leave_one_out")


def contradictions(config: Any) -> list[str]:
    """All contradictions between the sections of a configuration of the GRPO family; empty if it is sound."""
    return [*shared_contradictions(config), *_policy_gradient(config), *_support(config)]


def shared_contradictions(config: Any) -> list[str]:
    """Those that every trainer has, whatever its algorithm."""
    return [
        *_batch(config), *_optimizer(config), *_temperature(config), *_rewards(config), *_evaluation(config),
        *_lengths(config), *environment_contradictions(config), *staleness_contradictions(config),
    ]  # fmt: skip


def check_world_size(config: Any, world_size: int) -> None:
    """Raise ConfigError unless every optimizer step's prompts divide evenly over `world_size` ranks.

    Each rank generates prompts_per_step / world_size prompts and cuts them into `minibatches` equal parts.
    """
    batch = config.batch
    unit = world_size * batch.minibatches
    if batch.prompts_per_step % unit:
        below, above = batch.prompts_per_step // unit * unit, -(-batch.prompts_per_step // unit) * unit
        fitting = f"{below} or {above}" if below else f"{above}"
        raise ConfigError(
            [
                f"batch.prompts_per_step = {batch.prompts_per_step} does not divide over {world_size} ranks x "
                f"{batch.minibatches} "
                f"minibatches: set batch.prompts_per_step to {fitting}, or launch another number of processes"
            ]
        )


def _batch(config: Any) -> list[str]:
    batch = config.batch
    if batch.prompts_per_step % batch.minibatches == 0:
        return []
    fitting = max(n for n in range(1, batch.minibatches) if batch.prompts_per_step % n == 0)
    return [
        f"batch.minibatches = {batch.minibatches} does not divide batch.prompts_per_step = {batch.prompts_per_step}: "
        f"set batch.minibatches to {fitting}, or batch.prompts_per_step to a multiple of {batch.minibatches}"
    ]


def _policy_gradient(config: Any) -> list[str]:
    batch, algorithm, problems = config.batch, config.algorithm, []
    kl = algorithm.kl
    if kl.coefficient > 0 and kl.where == "loss" and kl.estimator == "k1":
        problems.append(
            "algorithm.kl.estimator = k1 in the loss has a gradient whose expectation is 0, so it pulls nowhere: set "
            "algorithm.kl.estimator to k3 or k2, or algorithm.kl.where to reward"
        )
    if batch.epochs > 1 and algorithm.loss == "reinforce":
        problems.append(
            f"batch.epochs = {batch.epochs} with algorithm.loss = reinforce: the second pass is off-policy and "
            "nothing corrects it; "
            "set batch.epochs to 1, or algorithm.loss to clip or cispo"
        )
    return problems


def _optimizer(config: Any) -> list[str]:
    precision = getattr(config.optimizer, "param_precision", "native")
    if precision == "native":
        return []
    place = f"optimizer.param_precision = {precision} is for bfloat16 weights that are trained"
    if config.model.lora is not None:
        return [f"{place}, and adapters are float32: set optimizer.param_precision to native"]
    if config.model.dtype == "float32":
        return [
            f"{place}, and model.dtype is float32: set optimizer.param_precision to native, or model.dtype to bfloat16"
        ]
    return []


def _temperature(config: Any) -> list[str]:
    if config.sampling.temperature > 0:
        return []
    return [
        "sampling.temperature = 0 gives every sample of a prompt the same completion and no gradient: "
        "set it above 0 (1.0 is usual); evaluation.temperature may be 0"
    ]


def _support(config: Any) -> list[str]:
    sampling, algorithm, problems = config.sampling, config.algorithm, []
    support = "the learner's log-probs cover the whole vocabulary, so the importance ratio would be wrong"
    if sampling.top_p != 1:
        problems.append(f"sampling.top_p = {sampling.top_p}: {support}; set sampling.top_p to 1")
    if sampling.top_k != 0:
        problems.append(f"sampling.top_k = {sampling.top_k}: {support}; set sampling.top_k to 0")
    if algorithm.advantage in GROUP_ADVANTAGES and sampling.samples_per_prompt < 2:
        problems.append(
            f"algorithm.advantage = {algorithm.advantage} compares the samples of one prompt, and "
            f"sampling.samples_per_prompt is {sampling.samples_per_prompt}: "
            "set it to 2 or more, or algorithm.advantage to batch_mean"
        )
    if algorithm.advantage not in GROUP_ADVANTAGES and algorithm.dynamic_sampling.max_refills > 0:
        problems.append(
            f"algorithm.dynamic_sampling.max_refills = {algorithm.dynamic_sampling.max_refills} replaces groups "
            f"without a signal, and algorithm.advantage = {algorithm.advantage} has no groups: "
            f"set max_refills to 0, or algorithm.advantage to one of {', '.join(GROUP_ADVANTAGES)}"
        )
    return problems


def _rewards(config: Any) -> list[str]:
    problems = []
    for index, function in enumerate(config.rewards.functions):
        place = f"rewards.functions.{index}"
        if (
            isinstance(function, CorrectnessConfig)
            and isinstance(config.data, DatasetConfig)
            and not config.data.answer_field
        ):
            problems.append(
                f"{place} (correctness) needs the gold answers of {config.data.path}: set data.answer_field to "
                "their field"
            )
        if isinstance(function, SoftOverlongConfig) and function.max_tokens > most_own_tokens(config):
            turns = "" if config.environment is None else f" x {config.environment.turns} turns"
            problems.append(
                f"{place}.max_tokens = {function.max_tokens} is above sampling.max_tokens = "
                f"{config.sampling.max_tokens}{turns}, so the full punishment is never reached: "
                f"set {place}.max_tokens to {most_own_tokens(config)} or less"
            )
    return problems


def _evaluation(config: Any) -> list[str]:
    return [*_held_out(config), *_keep_best(config)]


def _keep_best(config: Any) -> list[str]:
    name = config.checkpoint.keep_best or ""
    known = config.evaluation.sets
    if not name.startswith("evaluation/") or name.removeprefix("evaluation/").rpartition("/")[0] in known:
        return []
    figure = "accuracy" if config.environment is None or known[:1] != ["held_out"] else "reward_per_turn"
    choice = f"set it to evaluation/{known[0]}/{figure}" if known else "set evaluation.prompts or evaluation.benchmarks"
    return [f"checkpoint.keep_best = {name} is not measured: evaluated are {', '.join(known) or 'no sets'}; {choice}"]


def _held_out(config: Any) -> list[str]:
    evaluation = config.evaluation
    if evaluation.prompts == 0:
        return []
    if evaluation.data is None and isinstance(config.data, RowsConfig):
        return [
            f"evaluation.prompts = {evaluation.prompts}, but a dataset has no held-out part of its own: give "
            "evaluation.data "
            "(for example the same dataset with split: test), or set evaluation.prompts to 0"
        ]
    source, name = (config.data, "data") if evaluation.data is None else (evaluation.data, "evaluation.data")
    if isinstance(source, ArithmeticConfig) and evaluation.prompts > ARITHMETIC_HELD_OUT[source.level]:
        held_out = ARITHMETIC_HELD_OUT[source.level]
        return [
            f"evaluation.prompts = {evaluation.prompts}, and level {source.level} of arithmetic holds {held_out} "
            f"problems out: set evaluation.prompts to {held_out} or less, or {name}.level higher"
        ]
    if isinstance(evaluation.data, DatasetConfig) and not evaluation.data.answer_field and config.environment is None:
        return [
            f"evaluation.data needs the gold answers of {evaluation.data.path}: set evaluation.data.answer_field "
            "to their field"
        ]
    return []


def longest_sequence(config: Any) -> int:
    """Prompt plus completion tokens, or those of a dialogue, that the engine must hold, in training and on held-out
    prompts."""
    longest = config.data.max_prompt_tokens + most_completion_tokens(config)
    if config.evaluation.prompts > 0:
        source = config.evaluation.data or config.data
        longest = max(longest, source.max_prompt_tokens + most_completion_tokens(config, config.evaluation.max_tokens))
    return longest


def _lengths(config: Any) -> list[str]:
    engine, longest = config.engine, longest_sequence(config)
    if isinstance(engine, VllmEngineConfig) and engine.max_model_len is not None and engine.max_model_len < longest:
        return [
            f"engine.max_model_len = {engine.max_model_len} is below the longest prompt plus completion, "
            f"{_sum_of_lengths(config)} = {longest}, in training or evaluation: raise it to {longest}, or omit it"
        ]
    return []


def _sum_of_lengths(config: Any) -> str:
    if config.environment is None:
        return "max_prompt_tokens + max_tokens"
    return f"max_prompt_tokens + {config.environment.turns} turns x (max_tokens + max_reply_tokens)"


def remarks(config: Any) -> list[str]:
    """What is legal but may surprise; shown by `--dry-run`."""
    notes: list[str] = []
    longest = config.data.max_prompt_tokens + most_completion_tokens(config)
    if config.batch.tokens_per_micro_batch < longest:
        notes.append(
            f"batch.tokens_per_micro_batch = {config.batch.tokens_per_micro_batch} is below the longest prompt "
            f"plus completion ({longest} tokens): such a sample becomes a micro-batch of its own, above the budget"
        )
    lora = config.model.lora
    if lora is not None and lora.dropout > 0:
        notes.append(
            f"model.lora.dropout = {lora.dropout}: the learner's log-probs are noisy, so the ratio of an "
            "on-policy step is not 1; set it to 0, or raise guards.ratio_tolerance"
        )
    if hasattr(config.algorithm, "loss"):
        notes += _policy_gradient_remarks(config)
    if config.checkpoint.keep_best is not None and (config.checkpoint.every == 0 or config.evaluation.every == 0):
        notes.append(
            "checkpoint.keep_best chooses between checkpoints made during the run: set checkpoint.every and "
            "evaluation.every"
        )
    return notes + staleness_remarks(config) + _optimizer_remarks(config)


def _policy_gradient_remarks(config: Any) -> list[str]:
    algorithm, batch, notes = config.algorithm, config.batch, []
    if algorithm.loss == "reinforce" and batch.minibatches > 1:
        notes.append(
            f"batch.minibatches = {batch.minibatches} with algorithm.loss = reinforce: all but the first "
            "optimizer step of a rollout are slightly off-policy without correction"
        )
    if batch.minibatches * batch.epochs > 1 and algorithm.loss == "clip" and algorithm.clip_low >= 1:
        notes.append(
            f"algorithm.clip_low = {algorithm.clip_low}: a ratio is never below 0, so nothing is clipped from below"
        )
    return notes


def _optimizer_remarks(config: Any) -> list[str]:
    optimizer = config.optimizer
    if isinstance(optimizer, AdamW8bitConfig) and not any(map(importlib.util.find_spec, libraries_of(optimizer))):
        return [
            f"optimizer.type = adamw_8bit: {' or '.join(libraries_of(optimizer))} is not installed here; "
            "pip install torchao, or set optimizer.type to frugal and optimizer.state_dtype to 8bit"
        ]
    if not isinstance(optimizer, FrugalConfig):
        return []
    lora = config.model.lora
    if lora is not None and lora.rank < MIN_SPLIT_DIM:
        return [
            f"optimizer.type = frugal with model.lora.rank = {lora.rank}: matrices with less than {MIN_SPLIT_DIM} rows "
            "are never split, so density, selector and the state-free rule have no effect"
        ]
    steps = config.batch.steps * config.batch.minibatches * config.batch.epochs
    longest = max(1, int(steps * optimizer.density))
    if 0 < optimizer.density < 1 and optimizer.update_gap > longest:
        return [
            f"optimizer.update_gap = {optimizer.update_gap}: in the run's {steps} optimizer steps a density of "
            f"{optimizer.density:g} does not pass over all weights once; set it to {longest} or less"
        ]
    return []
