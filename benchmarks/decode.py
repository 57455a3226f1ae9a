"""Sampled tokens per second: transformers' generate(), our transformers engine, our vLLM engine, on the same prompts.

    python benchmarks/decode.py [--rows 32] [--tokens 64] [--threads 2] [--repeat 3] [--dtype bfloat16] [--json]

Every variant runs in its own process, one after another (set the environment that `make` sets, see Makefile: RUN).
The first run of a variant is dropped, the median of the rest reported. Tokens after a row's end do not count.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

CHECKPOINT = "embedded:smollm2-135m-instruct"
SAMPLES_PER_PROMPT = 8
VARIANTS = {
    "transformers generate, float32 weights, bfloat16 autocast": "generate-autocast",
    "transformers generate": "generate",
    "rlhf transformers engine": "transformers",
    "rlhf vLLM engine": "vllm",
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=32, help="completions drawn together, a multiple of 8")
    parser.add_argument("--tokens", type=int, default=64, help="longest completion")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of torch")
    parser.add_argument("--repeat", type=int, default=3, help="measured runs a variant")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--variant", choices=list(VARIANTS.values()), help="measure this one in this process")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    if options.variant:
        print(json.dumps(measure(options)))
        return
    load_before = os.getloadavg()[0]
    results = {}
    for title, variant in VARIANTS.items():
        command = [sys.executable, __file__, "--variant", variant]
        for name in ("rows", "tokens", "threads", "repeat", "dtype"):
            command += [f"--{name}", str(getattr(options, name))]
        environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
        output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
        results[title] = json.loads(output.splitlines()[-1])
    settings = {name: getattr(options, name) for name in ("rows", "tokens", "threads", "dtype")}
    settings |= {"load_before": load_before}
    if options.json:
        print(json.dumps({"settings": settings, "results": results}))
        return
    print("  ".join(f"{name} {value}" for name, value in settings.items()))
    print(f"{'':58} tokens/s  tokens/cpu-s  ms/step  push s  checksums s")
    for title, row in results.items():
        timings = [f"{row[key]:.2f}" if key in row else "-" for key in ("push_s", "checksums_s")]
        print(
            f"{title:58} {row['tokens_per_s']:8.1f}  {row['tokens_per_cpu_s']:12.1f}  {row['ms_per_step']:7.1f}"
            f"  {timings[0]:>6}  {timings[1]:>11}"
        )


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Times of one variant in this process."""
    import torch
    from transformers import AutoTokenizer

    from rlhf.config.rollouts import SamplingConfig
    from rlhf.data.types import Prompt
    from rlhf.models.embedded import resolve_model_path
    from rlhf.rollouts.requests import make_requests

    torch.set_num_threads(options.threads)
    path = resolve_model_path(CHECKPOINT)
    tokenizer = AutoTokenizer.from_pretrained(path)
    generator = random.Random(0)
    prompts = []
    for number in range(options.rows // SAMPLES_PER_PROMPT):
        sum_ = f"{generator.randrange(10)} + {generator.randrange(10)}"
        chat = [{"role": "user", "content": f"What is {sum_}? Answer with only the number."}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
        prompts.append(Prompt(id=f"sum:{number}", token_ids=tuple(ids), text=chat[0]["content"]))

    if options.variant.startswith("generate"):
        run: Callable[[int], list[int]] = generate_runner(options, path, prompts, tokenizer.eos_token_id)
        engine = None
    else:
        engine = build(options, path, tokenizer)
        sampling = SamplingConfig(max_tokens=options.tokens, stop_token_ids=[tokenizer.eos_token_id])

        def run(seed: int) -> list[int]:
            samples = engine.generate(make_requests(prompts, SAMPLES_PER_PROMPT, seed, 0), sampling)
            return [len(sample.completion_ids) for sample in samples]

    rates = []
    for seed in range(options.repeat + 1):
        wall, cpu = time.perf_counter(), time.process_time()
        lengths = run(seed)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        rates.append((sum(lengths) / wall, sum(lengths) / cpu, 1000 * wall / max(lengths)))
    medians = [statistics.median(column) for column in zip(*rates[1:], strict=True)]
    result = dict(zip(("tokens_per_s", "tokens_per_cpu_s", "ms_per_step"), medians, strict=True))
    return result | (sync_times(engine, path) if engine is not None else {})


def build(options: argparse.Namespace, path: str, tokenizer: Any) -> Any:
    import torch

    from rlhf.config.rollouts import TransformersEngineConfig, VllmEngineConfig
    from rlhf.rollouts.transformers_engine import TransformersEngine
    from rlhf.rollouts.vllm_engine import VllmEngine

    dtype = getattr(torch, options.dtype)
    if options.variant == "transformers":
        return TransformersEngine(path, config=TransformersEngineConfig(), tokenizer=tokenizer, dtype=dtype)
    max_model_len = 64 + options.tokens
    config = VllmEngineConfig()
    return VllmEngine(path, config=config, max_model_len=max_model_len, tokenizer=tokenizer, dtype=dtype, seed=0)


def sync_times(engine: Any, path: str) -> dict[str, float]:
    """Seconds of a push of float32 master weights, and of reading back all checksums; medians of three."""
    import torch
    from transformers import AutoModelForCausalLM

    learner = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    times: dict[str, list[float]] = {"push_s": [], "checksums_s": []}
    for version in range(3):
        start = time.perf_counter()
        engine.load_weights(learner.named_parameters(), version)
        times["push_s"].append(time.perf_counter() - start)
        start = time.perf_counter()
        engine.checksums()
        times["checksums_s"].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def generate_runner(options: argparse.Namespace, path: str, prompts: list[Any], eos: int) -> Callable[[int], list[int]]:
    """generate() on the left-padded batch, every prompt repeated, as trainers commonly call it."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    is_autocast = options.variant == "generate-autocast"
    dtype = torch.float32 if is_autocast else getattr(torch, options.dtype)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()
    if is_autocast:
        # around each forward, as accelerate does: the cache of cast weights ends with it
        model.forward = torch.autocast("cpu", dtype=torch.bfloat16)(model.forward)
    width = max(len(prompt.token_ids) for prompt in prompts)
    rows = [prompt.token_ids for prompt in prompts for _ in range(SAMPLES_PER_PROMPT)]
    ids = torch.tensor([[eos] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    config = GenerationConfig(
        max_new_tokens=options.tokens, do_sample=True, top_k=0, top_p=1.0, eos_token_id=eos, pad_token_id=eos
    )

    def run(seed: int) -> list[int]:
        torch.manual_seed(seed)
        with torch.no_grad():
            output = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
        completions = output[:, width:].tolist()
        return [row.index(eos) + 1 if eos in row else len(row) for row in completions]

    return run


if __name__ == "__main__":
    main()
