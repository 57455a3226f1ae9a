"""From a configuration to a finished run: wires the rooms, resumes, trains, exports, reports."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from rlhf.config.data import PreferencesConfig
from rlhf.config.division import division_from_environment
from rlhf.config.dry_run import batch_table, memory_text
from rlhf.config.loading import to_dict, to_yaml
from rlhf.config.memory_plan import memory_plan
from rlhf.config.model_shapes import find_shape
from rlhf.config.recipe import RecipeConfig
from rlhf.config.rules import longest_sequence
from rlhf.config.sharding import sharding_from_environment, sharding_problems
from rlhf.config.sources import ConfigError
from rlhf.data.order import PromptStream
from rlhf.data.preference_source import load_preferences
from rlhf.data.seeds import derive_seed
from rlhf.data.sources import load_held_out, load_prompts
from rlhf.data.types import Sample
from rlhf.models.loading import load_tokenizer
from rlhf.rewards.scoring import RewardScorer
from rlhf.rollouts.build import build_engine
from rlhf.rollouts.dialogues import Dialogues
from rlhf.trainers.build_collector import make_collector, reference_table
from rlhf.trainers.build_critic import make_critic
from rlhf.trainers.grpo import PolicyGradient
from rlhf.trainers.resuming import find_checkpoint, restore
from rlhf.trainers.resuming import save as save_run
from rlhf.training.checkpoint import recover
from rlhf.training.collectives import gather_lists
from rlhf.training.dialogue_evaluation import DialogueEvaluator
from rlhf.training.environment import describe_environment
from rlhf.training.evaluation import Evaluator, HeldOutEvaluator
from rlhf.training.guards import NonFiniteGuard
from rlhf.training.launch_checks import check_launch, start_accelerator
from rlhf.training.learner import Learner
from rlhf.training.metrics import Trackers
from rlhf.training.optimizers import keeps_master_copies
from rlhf.training.progress import ProgressDisplay
from rlhf.training.recorder import Recorder, peak_bytes
from rlhf.training.report.run_report import write_report
from rlhf.training.run_folder import RunFolder
from rlhf.training.trainer import GuidingAlgorithm, RolloutAlgorithm, Trainer
from rlhf.training.weight_sync import sync_weights
from rlhf.training.weights.build import load_frozen_policy, load_trained_policy

NOT_TRAINED = (
    "the weights in this folder are those that the run began with: with actor.kind implicit no weights are trained. "
    "The policy is these weights guided by the critic at every token, and the critic is in the run's checkpoints "
    "(weights.safetensors, names that begin with critic.); without it this model samples as before the run"
)
MakeEvaluators = Callable[[RecipeConfig, PreTrainedTokenizerBase, Accelerator, Path], Sequence[Evaluator]]
"""Makes evaluators from the configuration, the tokenizer, the ranks and the run's folder."""
MakeAlgorithm = Callable[[Any, int], RolloutAlgorithm]
"""Makes the algorithm from its section of the configuration and the number of samples a prompt."""


def run(
    config: RecipeConfig,
    make_evaluators: MakeEvaluators | None = None,
    make_algorithm: MakeAlgorithm = PolicyGradient,
) -> Path:
    """Train as configured; returns the run's folder. Resumes from the newest whole checkpoint where there is one.

    `make_evaluators` makes those for `evaluation.benchmarks` (`eval.in_training.benchmark_evaluators`). Raises
    ConfigError where the configuration asks for benchmarks and it is not given.
    """
    if config.evaluation.benchmarks and make_evaluators is None:
        raise ConfigError(
            ["evaluation.benchmarks needs run(config, eval.in_training.benchmark_evaluators), as in recipes/grpo.py"]
        )
    start = time.perf_counter()
    sharding = sharding_from_environment(os.environ)
    accelerator = start_accelerator(
        sharding, log_with=config.tracking.trackers or None, project_dir=str(Path(config.run.folder) / config.run.name)
    )
    check_launch(accelerator, sharding)
    if problems := sharding_problems(config, sharding):
        raise ConfigError(problems)
    folder = RunFolder(Path(config.run.folder) / config.run.name)
    progress = ProgressDisplay(config.batch.steps, accelerator.is_main_process)
    if accelerator.is_main_process:
        folder.create(to_yaml(config), resume=config.run.resume == "auto")
        recover(folder.checkpoints)
        folder.write_environment(describe_environment())
    accelerator.wait_for_everyone()
    checkpoint = find_checkpoint(config, folder, progress)
    progress.message(batch_table(config, accelerator.num_processes))
    progress.message(memory_text(config, division_from_environment(os.environ)))

    tokenizer = load_tokenizer(config.model)
    # before the model: unknown benchmarks, unreadable files and reward models that are none are told in seconds
    scorer = RewardScorer(config.rewards)
    dialogues = None if config.environment is None else Dialogues(config.environment, tokenizer)
    evaluators = _held_out_evaluators(config, tokenizer, accelerator, dialogues)
    if make_evaluators is not None:
        evaluators += make_evaluators(config, tokenizer, accelerator, folder.path)
    is_offline = isinstance(config.data, PreferencesConfig)
    source = (
        load_preferences(config.data, tokenizer, config.sampling.max_tokens) if is_offline
        else load_prompts(config.data, tokenizer, seed=config.run.seed)
    )  # fmt: skip
    stream = PromptStream(source, derive_seed(config.run.seed, "order"))
    temperature = config.sampling.temperature
    if config.algorithm.trains_policy:
        policy = load_trained_policy(
            config.model, accelerator, sharding, copies=keeps_master_copies(config.optimizer), temperature=temperature,
            seed=config.run.seed,
        )  # fmt: skip
        reference = None
        if config.algorithm.needs_reference_model and config.model.lora is None:
            reference = load_frozen_policy(config.model, accelerator, sharding, temperature=temperature)
    else:
        policy = reference = load_frozen_policy(config.model, accelerator, sharding, temperature=temperature)
    algorithm = make_algorithm(config.algorithm, config.completions_per_prompt)
    critic = make_critic(config, policy, reference, accelerator, tokenizer, sharding)
    guard = NonFiniteGuard(config.guards, folder.dumps)
    learner = Learner(policy, config, accelerator, guard, reference, critic, sharding)
    engine = None if is_offline and not evaluators else build_engine(
        config.engine, config.model, tokenizer=tokenizer,
        longest_sequence=max([longest_sequence(config), *(each.longest_sequence for each in evaluators)]),
        seed=derive_seed(config.run.seed, "engine", accelerator.process_index) % 2**31,
        log_file=folder.path / f"engine-{accelerator.process_index}.log",
    )  # fmt: skip
    trackers = Trackers(accelerator, config.tracking)
    trackers.start(to_dict(config))
    recorder = Recorder(config, folder, accelerator, progress, trackers)
    step, pending = 0, {}
    if checkpoint is not None:
        step, pending = restore(checkpoint, learner, stream, accelerator)
        if hasattr(algorithm, "load_state_dict"):
            algorithm.load_state_dict(checkpoint.state["algorithm"])
        recorder.discarded = checkpoint.state["discarded"] if accelerator.is_main_process else 0
    version = step if checkpoint is None else checkpoint.state["policy_version"]
    if engine is not None:
        sync_weights(learner.policy_weights(), engine, version=version)
        if isinstance(algorithm, GuidingAlgorithm):
            algorithm.guide(engine, learner, version)
    if is_offline:
        algorithm.table = reference_table(config, stream, learner, folder.path / "reference_logps.safetensors", step)
    if accelerator.is_main_process:
        # after step 0 there is an evaluation only, and the loop makes it again as it begins
        folder.truncate_after(step or -1)
    best: dict[str, float] = dict(checkpoint.state.get("best", {})) if checkpoint else {}

    def save(at: int, waiting: Mapping[int, list[Sample]]) -> None:
        state = algorithm.state_dict() if hasattr(algorithm, "state_dict") else {}
        rows = gather_lists([(later, sample) for later, batch in waiting.items() for sample in batch])
        steps = [later for later, _ in rows]
        discarded = sum(gather_lists([recorder.discarded]))
        own = {"algorithm": state, "policy_version": trainer.version, "pending_steps": steps, "discarded": discarded}
        save_run(config, folder, learner, stream, recorder, at, [sample for _, sample in rows], best, own)

    sampler = engine if dialogues is None else dialogues.on(engine)
    collector = make_collector(config, stream, sampler, scorer, recorder, algorithm, learner)
    trainer = Trainer(
        config, collector=collector, engine=engine, algorithm=algorithm, learner=learner, recorder=recorder,
        evaluators=evaluators, save=save, step=step, version=version, pending=pending,
    )  # fmt: skip
    try:
        with progress:
            finished = trainer.train()
        is_exported = finished and config.checkpoint.export
        if is_exported:
            learner.save_policy(folder.model, tokenizer)
            if not config.algorithm.trains_policy and accelerator.is_main_process:
                progress.message(f"WARNING: {folder.explain_export(NOT_TRAINED)}")
        if accelerator.is_main_process:
            if hasattr(algorithm, "tables"):
                folder.write_tables(algorithm.tables(tokenizer))
            _finish(config, folder, recorder, progress, is_exported, time.perf_counter() - start)
        # before the engine is closed: vLLM takes the process group down with it
        accelerator.wait_for_everyone()
    finally:
        scorer.close()
        for evaluator in evaluators:
            evaluator.close()
        if engine is not None:
            engine.close()
        trackers.end()
    return folder.path


def _held_out_evaluators(
    config: RecipeConfig, tokenizer: PreTrainedTokenizerBase, accelerator: Accelerator, dialogues: Dialogues | None
) -> list[Evaluator]:
    evaluation = config.evaluation
    if evaluation.prompts == 0:
        return []
    held_out = load_held_out(evaluation, config.data, tokenizer)
    sampling = evaluation.sampling.model_copy(update={"samples_per_prompt": 1})
    prompts = [held_out[index] for index in range(len(held_out))]
    rank, world_size = accelerator.process_index, accelerator.num_processes
    if dialogues is not None:
        return [DialogueEvaluator(prompts, dialogues, sampling, evaluation.seed, rank, world_size)]
    return [HeldOutEvaluator(prompts, sampling, evaluation.seed, rank, world_size)]


def _finish(
    config: RecipeConfig, folder: RunFolder, recorder: Recorder, progress: ProgressDisplay, is_exported: bool,
    seconds: float,
) -> None:  # fmt: skip
    shape = _shape(config)
    if shape is not None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        plan = memory_plan(config, shape, division_from_environment(os.environ), device)
        parts = [(item.name if item.place == "device" else f"{item.name} (host)", item.bytes) for item in plan.items]
        folder.write_memory_plan(parts, peak_bytes())
    places: dict[str, object] = {}
    if is_exported:
        places["model"] = folder.model
    places["report"] = write_report(folder)
    places["run folder"] = folder.path
    evaluations = folder.read_evaluations()
    first_set = [record for record in evaluations if record["name"] == evaluations[0]["name"]]
    before = first_set[0] if first_set else None
    after = first_set[-1] if len(first_set) > 1 else None
    progress.summary(before, after, seconds, places)


def _shape(config: RecipeConfig):
    try:
        return find_shape(config.model.path, config.model.revision)
    except (OSError, ValueError, LookupError):
        return None  # an unknown shape has no plan; the run does not depend on it
