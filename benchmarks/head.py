"""The one-pass LM head against a plain log-softmax, and packed attention against sdpa: time and peak memory.

    python benchmarks/head.py                       # float32, and bfloat16 where the CPU multiplies it in hardware
    python benchmarks/head.py --threads 1 --clock cpu   # on a busy machine

Each row is the median of `--repeats` forward and backward passes after one warm-up; peak memory is what torch's
allocator held beyond inputs, gradients included.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from rlhf.models.attention import packed_attention
from rlhf.models.attention_plan import Segment, attention_plan
from rlhf.models.head import policy_head, token_statistics
from rlhf.models.precision import cpu_has_bfloat16_matmul

# SmolLM2-135M
VOCABULARY, HIDDEN = 49_152, 576
HEADS, KEY_HEADS, HEAD_SIZE = 9, 3, 64


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    arguments = parser.parse_args()
    clock = time.perf_counter if arguments.clock == "wall" else time.process_time
    torch.set_num_threads(arguments.threads)
    dtypes = [torch.float32] + ([torch.bfloat16] if cpu_has_bfloat16_matmul() else [])
    console = Console()
    table = Table(
        "tokens", "dtype", "head", "seconds", "x plain", "peak MB", title=f"LM head, V {VOCABULARY}, D {HIDDEN}"
    )
    for dtype in dtypes:
        for count in arguments.tokens:
            add_rows(table, (f"{count}", str(dtype)), head_variants(count, dtype), arguments.repeats, clock)
    console.print(table)
    title = f"Attention of one layer, {HEADS}/{KEY_HEADS} heads"
    table = Table("batch", "dtype", "attention", "seconds", "x sdpa", "peak MB", title=title)
    for dtype in dtypes:
        for name, shape in {"4 x 45 + 32 x 40": (4, 45, 8, 40), "2 x 512 + 16 x 512": (2, 512, 8, 512)}.items():
            add_rows(table, (name, str(dtype)), attention_variants(*shape, dtype), arguments.repeats, clock)
    console.print(table)


def add_rows(
    table: Table,
    labels: tuple[str, ...],
    variants: dict[str, Callable[[], object]],
    repeats: int,
    clock: Callable[[], float],
) -> None:
    """One row a variant; the first is the unit of the others."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for repeat in range(repeats + 1):
        # interleaved, so that a busy machine slows all alike
        for name, run in variants.items():
            start = clock()
            run()
            if repeat:
                times[name].append(clock() - start)
    unit = statistics.median(times[next(iter(variants))])
    for name, run in variants.items():
        median = statistics.median(times[name])
        table.add_row(*labels, name, f"{median:.4f}", f"{unit / median:.2f}", f"{peak_bytes(run) / 1e6:.0f}")


def peak_bytes(run: Callable[[], object]) -> int:
    """Most bytes torch's CPU allocator held at once beyond what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        kept = run()
    live = peak = 0
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    del kept
    return peak


def head_variants(count: int, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """Forward and backward of a clipped surrogate with an entropy that is only logged."""
    torch.manual_seed(0)
    hidden_ND = torch.randn(count, HIDDEN).to(dtype).requires_grad_()
    weight_VD = (torch.randn(VOCABULARY, HIDDEN) * 0.05).to(dtype).requires_grad_()
    target_N, advantage_N = torch.randint(0, VOCABULARY, (count,)), torch.randn(count)

    def objective(logp_n: torch.Tensor, entropy_n: torch.Tensor, rows: slice) -> torch.Tensor:
        ratio = (logp_n - logp_n.detach()).exp()
        return -torch.minimum(ratio * advantage_N[rows], ratio.clamp(0.8, 1.2) * advantage_N[rows])

    def finish(loss: torch.Tensor) -> object:
        return torch.autograd.grad(loss, (hidden_ND, weight_VD))

    def plain() -> object:
        logp_NV = F.linear(hidden_ND, weight_VD).float().log_softmax(-1)
        with torch.no_grad():
            entropy_N = -(logp_NV.exp() * logp_NV).sum(-1)
        return finish(objective(logp_NV.gather(1, target_N[:, None])[:, 0], entropy_N, slice(None)).sum())

    def two_passes() -> object:
        statistics_N = token_statistics(hidden_ND, weight_VD, target_N)
        return finish(objective(statistics_N.logp_N, statistics_N.entropy_N, slice(None)).sum())

    return {
        "plain log-softmax": plain,
        "two passes": two_passes,
        "one pass": lambda: finish(policy_head(hidden_ND, weight_VD, target_N, objective).loss),
    }


def attention_variants(
    prompts: int, prompt: int, group: int, completion: int, dtype: torch.dtype
) -> dict[str, Callable[[], object]]:
    """The same completions: padded rows of [prompt, completion] through sdpa, or packed behind shared prompts."""
    torch.manual_seed(0)
    segments, position = [], 0
    for _ in range(prompts):
        start = position
        segments.append(Segment(start, prompt))
        position += prompt
        for _ in range(group):
            segments.append(Segment(position, completion, start, prompt))
            position += completion
    plan = attention_plan(segments, position)

    def inputs(rows: int, length: int) -> list[torch.Tensor]:
        sizes = [(rows, heads, length, HEAD_SIZE) for heads in (HEADS, KEY_HEADS, KEY_HEADS)]
        return [torch.randn(size).to(dtype).requires_grad_() for size in sizes]

    padded, packed = inputs(prompts * group, prompt + completion), inputs(1, position)

    def sdpa() -> object:
        out = F.scaled_dot_product_attention(*padded, is_causal=True, enable_gqa=True)
        return torch.autograd.grad(out.sum(), padded)

    def shared() -> object:
        out, _ = packed_attention(torch.nn.Module(), *packed, None, attention_plan=plan)
        return torch.autograd.grad(out.sum(), packed)

    return {"sdpa, padded rows": sdpa, "packed, shared prompts": shared}


if __name__ == "__main__":
    main()
