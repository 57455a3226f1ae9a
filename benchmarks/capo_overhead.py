"""What CAPO's screening costs: the demo task's step with it over GRPO's without it, one command, one table.

    python benchmarks/capo_overhead.py

One learner and one engine; in each round the same fresh samples are learned by GRPO and by CAPO with each of its step
models, in rotating order. A step is generation, grading, update and weight
sync; only the update differs. Thresholds hold everything and the learning rate is next to 0, so all learn from the same
tokens at the same weights. Medians; the first round is left out.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from accelerate import Accelerator
from rich.console import Console
from rich.table import Table

from rlhf.config.capo import CAPOConfig
from rlhf.config.loading import parse_config
from rlhf.config.rules import longest_sequence
from rlhf.data.order import PromptStream
from rlhf.data.sources import load_prompts
from rlhf.models.loading import load_policy, load_tokenizer
from rlhf.rewards.scoring import RewardScorer
from rlhf.rollouts.build import build_engine
from rlhf.rollouts.requests import make_requests
from rlhf.trainers.capo import CurvatureMasked
from rlhf.trainers.grpo import PolicyGradient
from rlhf.training.guards import NonFiniteGuard
from rlhf.training.learner import Learner
from rlhf.training.weight_sync import sync_weights

ROOT = Path(__file__).resolve().parents[1]
WIDE = [
    "--algorithm.curvature.max_policy_shift", "1e9", "--algorithm.curvature.min_objective_shift", "-1e9",
    "--algorithm.curvature.max_objective_shift", "1e9", "--algorithm.curvature.calibrate_steps", "0",
    "--algorithm.curvature.measure_every", "0", "--optimizer.lr", "1e-12",
]  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=str(ROOT / "configs" / "capo" / "demo_arithmetic.yaml"))
    parser.add_argument("--engine", choices=["transformers", "vllm"], default="transformers")
    parser.add_argument("--rounds", type=int, default=12)
    arguments = parser.parse_args()
    common = ["--config", arguments.config, "--engine.type", arguments.engine, *WIDE]
    models = {f"CAPO, {model}": model for model in ("sgd", "adam_frozen", "adam_row")}
    configs = {
        name: parse_config(CAPOConfig, [*common, "--algorithm.curvature.step_model", model])
        for name, model in models.items()
    }
    times = measure(configs, arguments.rounds)
    shared = statistics.median(times["generation, grading, sync"])
    table = Table("variant", "update, s", "step, s", "x GRPO's step", title=f"CAPO on {arguments.engine}, demo task")
    base = shared + statistics.median(times["GRPO"])
    for name in ("GRPO", *configs):
        update = statistics.median(times[name])
        table.add_row(name, f"{update:.3f}", f"{shared + update:.3f}", f"{(shared + update) / base:.3f}")
    Console().print(table)


def measure(configs: dict[str, CAPOConfig], rounds: int) -> dict[str, list[float]]:
    """Seconds by variant, and of what all share."""
    config = next(iter(configs.values()))
    folder = Path(tempfile.mkdtemp())
    tokenizer = load_tokenizer(config.model)
    stream = PromptStream(load_prompts(config.data, tokenizer, seed=0), 0)
    policy = load_policy(config.model, temperature=config.sampling.temperature, seed=0)
    learner = Learner(policy, config, Accelerator(), NonFiniteGuard(config.guards, folder))
    engine = build_engine(
        config.engine, config.model, longest_sequence=longest_sequence(config), tokenizer=tokenizer, seed=0,
        log_file=folder / "engine.log",
    )  # fmt: skip
    scorer = RewardScorer(config.rewards)
    size = config.sampling.samples_per_prompt
    algorithms = {"GRPO": PolicyGradient(config.algorithm, size)}
    algorithms |= {name: CurvatureMasked(each.algorithm, size) for name, each in configs.items()}
    times: dict[str, list[float]] = {name: [] for name in ("generation, grading, sync", *algorithms)}
    try:
        for number in range(rounds + 1):
            start = time.perf_counter()
            sync_weights(policy.weights(), engine, version=number)
            requests = make_requests(stream.take(config.batch.prompts_per_step), size, 0, number)
            samples = scorer.score(engine.generate(requests, config.sampling))
            seconds = {"generation, grading, sync": time.perf_counter() - start}
            names = list(algorithms)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                start = time.perf_counter()
                algorithm = algorithms[name]
                learner.update(algorithm.prepare(samples, learner), algorithm, number + 1)
                seconds[name] = time.perf_counter() - start
            if number:
                for name, value in seconds.items():
                    times[name].append(value)
    finally:
        scorer.close()
        engine.close()
    return times


if __name__ == "__main__":
    main()
