"""GiB that a GPU needs to train a model, by how the ranks share it; and the plan against what is allocated.

    python benchmarks/memory_table.py                         # the table: arithmetic, in a second
    python benchmarks/memory_table.py --optimizer frugal
    python benchmarks/memory_table.py --measure               # two CPU ranks a method, about ten minutes

The table is the memory plan of `--dry-run METHOD:RANKS` without the engine, for the Qwen2.5 shapes. `--measure` builds
models of 85 and 135 million parameters under each method, learns one optimizer step of two micro-batches, counts the
storage of every tensor that is alive, and sets the plan beside it. `--out FILE` saves what is printed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from peers import table

from rlhf.config.division import METHODS, Division
from rlhf.config.grpo import GRPOConfig
from rlhf.config.memory_items import GIB, MemoryItem
from rlhf.config.memory_plan import MemoryPlan, learner_plan
from rlhf.config.model_shapes import ModelShape, find_shape, shape_from_config
from rlhf.config.sharding import Sharding, launch_environment
from rlhf.config.trained_memory import trained_items

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "benchmarks" / "peers" / "memory_on_ranks.py"
RANKS = (1, 8, 16, 64)
LORA = {"rank": 16}
MIB = 2**20
Counts = dict[str, dict[str, int]]
SETTINGS: dict[str, Any] = {
    "data": {"type": "arithmetic", "max_prompt_tokens": 512},
    "sampling": {"samples_per_prompt": 8, "max_tokens": 1024},
    "batch": {"prompts_per_step": 512, "tokens_per_micro_batch": 16384},
}


def _qwen(*sizes: int, is_tied: bool = False) -> ModelShape:
    return ModelShape(*sizes, is_tied=is_tied, has_qkv_bias=True)


# hidden, layers, heads, key-value heads, their width, MLP's width, vocabulary: from each checkpoint's config.json
SHAPES = {
    "0.5B": _qwen(896, 24, 14, 2, 64, 4864, 151936, is_tied=True),
    "1.5B": _qwen(1536, 28, 12, 2, 128, 8960, 151936, is_tied=True),
    "3B": _qwen(2048, 36, 16, 2, 128, 11008, 151936, is_tied=True),
    "7B": _qwen(3584, 28, 28, 4, 128, 18944, 152064),
    "14B": _qwen(5120, 48, 40, 8, 128, 13824, 152064),
    "32B": _qwen(5120, 64, 40, 8, 128, 27648, 152064),
    "72B": _qwen(8192, 80, 64, 8, 128, 29568, 152064),
}
SMALL = {
    "hidden_size": 640, "num_hidden_layers": 10, "num_attention_heads": 10, "num_key_value_heads": 2,
    "intermediate_size": 2560, "vocab_size": 20000, "tie_word_embeddings": False,
}  # fmt: skip
SMALL_NAME, SMOLLM = "random 85M", "embedded:smollm2-135m-instruct"
COLUMNS = {"type": "frugal", "selector": "columns"}
CELLS: list[dict[str, Any]] = [
    {"model": SMALL_NAME, "dtype": "bfloat16", "optimizer": {"type": "adamw"}, "lora_rank": 0},
    {"model": SMALL_NAME, "dtype": "bfloat16", "optimizer": {"type": "adamw"}, "lora_rank": 16},
    {"model": SMALL_NAME, "dtype": "bfloat16", "optimizer": COLUMNS, "lora_rank": 0},
    {"model": SMALL_NAME, "dtype": "float32", "optimizer": {"type": "auon"}, "lora_rank": 0},
    {"model": SMOLLM, "dtype": "bfloat16", "optimizer": {"type": "adabelief"}, "lora_rank": 0},
]
PARTS = {
    "weights": ("policy weights", "adapters", "small weights, whole"),
    "masters": ("float32 masters",),
    "gradients": ("gradients", "gradients for the step"),
    "in the step": ("gradients", "gradients for the step", "gradients flattened for the step"),
    "state": ("optimizer state", "lost bits of the weights"),
    "bucket": ("reduce bucket",),
}
"""What the plan calls that which is counted."""
COMPARED = ("weights", "masters", "gradients", "in the step", "state", "bucket")


def main() -> None:
    """Print the table, or what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="build models on two CPU ranks, and compare")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="only these")
    parser.add_argument("--optimizer", default="adamw", help="of the table: adamw, adabelief, frugal, auon")
    parser.add_argument("--card", type=float, default=80, help="GiB of a GPU, for the table of what fits")
    parser.add_argument("--counts", type=Path, help="keep the raw counts in this folder, and use those there")
    parser.add_argument("--out", type=Path, help="save what is printed")
    arguments = parser.parse_args()
    if arguments.measure:
        with tempfile.TemporaryDirectory() as scratch:
            folder = arguments.counts or Path(scratch)
            folder.mkdir(parents=True, exist_ok=True)
            text = lay_out_measured(measured(arguments.methods, folder))
    else:
        text = lay_out_plan(arguments.optimizer, arguments.methods, arguments.card)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text, encoding="utf-8")


def plan_of(shape: ModelShape, method: Sharding, ranks: int, has_lora: bool, optimizer: str) -> MemoryPlan:
    """Of the learner, on a GPU, with SETTINGS, bfloat16 and gradient checkpointing."""
    model = {"path": "Qwen", "gradient_checkpointing": True, "lora": LORA if has_lora else None}
    config = GRPOConfig.model_validate(SETTINGS | {"model": model, "optimizer": {"type": optimizer}})
    return learner_plan(config, shape, Division(method, ranks), "cuda")


def lay_out_plan(optimizer: str, methods: list[Sharding], card_gib: float) -> str:
    """The table of GiB, and the fewest ranks that fit a card, as markdown."""
    rows, fewest = [], []
    for name, shape in SHAPES.items():
        for has_lora in (False, True):
            trained, fits = "LoRA" if has_lora else "all", dict.fromkeys(methods, "")
            for ranks in RANKS:
                cells = []
                for method in methods:
                    plan = plan_of(shape, method, ranks, has_lora, optimizer)
                    is_asked = ranks > 1 or method == "ddp"
                    host = f" + {plan.host_bytes / GIB:,.1f}" if plan.host_bytes else ""
                    mark = "*" if plan.peak_bytes > plan.total_bytes else ""
                    cells.append(f"{plan.peak_bytes / GIB:,.1f}{mark}{host}" if is_asked else "")
                    if is_asked and plan.peak_bytes <= card_gib * GIB and not fits[method]:
                        fits[method] = str(ranks)
                rows.append([name, trained, str(ranks), *cells])
            fewest.append([name, trained, *(fits[method] or "none" for method in methods)])
    batch = SETTINGS["batch"]
    about = (
        f"GiB for each GPU by the memory plan (`+`: and of host memory), without the engine that generates, the "
        f"framework itself (about 1 GiB) and fragmentation. {optimizer}; bfloat16 with float32 masters; gradient "
        f"checkpointing; {batch['tokens_per_micro_batch']:,} tokens a micro-batch; LoRA of rank {LORA['rank']} on all "
        "linear layers; no reference model, no critic. `configs/accelerate/` as it is. `*`: the most is needed at the "
        "start, where DeepSpeed has the model whole on the device before it divides it. Calculated, not measured."
    )
    return "\n\n".join(
        [
            "# Memory by model, method and ranks",
            about,
            table.markdown(["Qwen2.5", "trained", "ranks", *methods], rows),
            f"Fewest ranks, of {', '.join(map(str, RANKS))}, with which the plan is at most {card_gib:g} GiB:",
            table.markdown(["Qwen2.5", "trained", *methods], fewest) + "\n",
        ]
    )


def measured(methods: list[Sharding], folder: Path) -> dict[Sharding, list[list[Counts]]]:
    """Counts by method, cell and rank, of two ranks; those that are in `folder` are taken from there."""
    if not (folder / "small").exists():
        _save_small(folder / "small")
    return {method: [_measured(cell, method, folder, index) for index, cell in enumerate(CELLS)] for method in methods}


def _measured(cell: dict[str, Any], method: Sharding, folder: Path, index: int) -> list[Counts]:
    out = folder / f"{method}.{index}.json"
    files = [Path(f"{out}.{rank}") for rank in (0, 1)]
    if not all(file.exists() for file in files):
        model = str(folder / "small") if cell["model"] == SMALL_NAME else cell["model"]
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        # DeepSpeed's ranks find the CPU by themselves, and are not seen by Accelerate where it is named
        on_cpu = {} if method.startswith("zero") else {"ACCELERATE_USE_CPU": "true"}
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)} | on_cpu
        environment |= launch_environment(method)
        # a launch for each: what one leaves behind would be memory of the next
        subprocess.run(
            [*launcher, SCRIPT, json.dumps(cell | {"model": model}), method, out], check=True, cwd=ROOT,
            env=environment, stdout=sys.stderr,
        )  # fmt: skip
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def _save_small(folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model("qwen2", **SMALL, pad_token_id=0)
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(folder)


def planned_parts(cell: dict[str, Any], method: Sharding, ranks: int = 2) -> dict[str, int]:
    """Bytes of each of PARTS, and of gathered weights."""
    shape = find_shape(cell["model"]) if cell["model"] != SMALL_NAME else _small_shape()
    lora = {"rank": cell["lora_rank"]} if cell["lora_rank"] else None
    config = GRPOConfig.model_validate(
        SETTINGS | {"model": {"path": "m", "dtype": cell["dtype"], "lora": lora}, "optimizer": cell["optimizer"]}
    )
    items = trained_items(config.model, config.optimizer, shape, Division(method, ranks))
    found = {part: _sum(items, names) for part, names in PARTS.items()}
    if method == "zero1":
        # DeepSpeed frees those after the step only, this project's ddp before
        found["gradients"] += _sum(items, ("gradients of a micro-batch",))
    if not method.startswith("zero3"):
        # no more than before the step, or for a moment that is not counted
        found.pop("in the step")
        if (method, cell["dtype"]) != ("zero1", "float32"):
            found.pop("bucket")
    return found | {"gathered": _sum(items, ("gathered weights",))}


def measured_parts(counts: Counts) -> dict[str, int]:
    """As `planned_parts`, from a rank's counts."""
    built, forward, backward, step, after = (
        counts[moment] for moment in ("built", "forward", "backward", "step", "after")
    )
    # ZeRO-3 leaves small weights whole from its first step on
    weights = max(built["weights"], after["weights"])
    return {
        "weights": weights, "masters": after["masters"], "state": after["state"],
        "gradients": max(forward["gradients"], backward["gradients"]), "in the step": step["gradients"],
        "bucket": max(built["buckets"], forward["buckets"]),
        # while FSDP2 and ZeRO-3 gather, a parameter is whole and its shard beside it
        "gathered": forward["weights"] + forward["masters"] - weights - after["masters"],
    }  # fmt: skip


def lay_out_measured(counts: dict[Sharding, list[list[Counts]]]) -> str:
    """Plan beside count, of the fuller rank, as markdown."""
    rows, worst = [], (1.0, "nothing")
    for method, by_cell in counts.items():
        for cell, of_ranks in zip(CELLS, by_cell, strict=True):
            found = [measured_parts(each) for each in of_ranks]
            planned, columns = planned_parts(cell, method), []
            name = cell["model"].removeprefix("embedded:").removesuffix("-instruct")
            what = f"{name}, {cell['dtype']}, {cell['optimizer']['type']}" + (", LoRA" if cell["lora_rank"] else "")
            for part in COMPARED:
                if part not in planned:
                    columns.append("")
                    continue
                most = max(each[part] for each in found)
                columns.append(_beside(planned[part], most))
                ratio = most / planned[part] if planned[part] else 1.0 + most
                if abs(ratio - 1) > abs(worst[0] - 1):
                    worst = (ratio, f"{part} of {what} under {method}")
            gathered = f"{max(each['gathered'] for each in found) / MIB:,.1f}"
            other = max(sum(each[moment]["other"] for each in of_ranks) for moment in ("built", "step", "after"))
            peak = f"{max(each['peak']['bytes'] for each in of_ranks) / MIB:,.0f}"
            rows.append([method, what, *columns, gathered, f"{other / MIB:,.1f}", peak])
    about = (
        "Two ranks on the CPU, gloo, one optimizer step of two micro-batches of a few tokens. MiB of the fuller rank: "
        "planned / counted, and counted over planned. Counted is the storage of every tensor that is alive: weights, "
        "masters and state after the step, gradients before it and in it."
    )
    notes = [
        f"- Largest deviation: {worst[0]:.3f}, {worst[1]}.",
        "- `gradients`: at the LM head of the second micro-batch, or after its backward pass. `in the step`: with what "
        "ZeRO-3 copies for it. Other methods hold no more in it, or for a moment that was not counted.",
        "- `bucket`: DeepSpeed's, where it is kept between passes; allocated, and hardly written to here.",
        "- `gathered`: what weights take more at the LM head than before. Under fsdp2 that is the tables; two blocks "
        "come and go, and are not seen there. A model of this size stays gathered under ZeRO-3, as planned.",
        "- `other`: storages of no such kind, both ranks together, at the fullest of three moments (built, in the "
        "step, after it). Seen are tensors that Python knows; what a library holds in C++ alone is not.",
        "- `process`: the most that a process's resident memory grew by, from before the model was loaded: with the "
        "loading, the activations, what the allocator keeps; without pages that nothing was written to. The plan has "
        "no such figure.",
        "- Host memory is device memory here: under zero3_offload both are counted together.",
    ]
    header = ["method", "model, compute, optimizer", *COMPARED, "gathered", "other", "process"]
    title = "# Memory plan against what is allocated"
    return "\n\n".join([title, about, table.markdown(header, rows), "\n".join(notes)]) + "\n"


def _beside(planned: int, found: int) -> str:
    ratio = f"{found / planned:.3f}" if planned else "" if not found else "not planned"
    return f"{planned / MIB:,.1f} / {found / MIB:,.1f} {ratio}".rstrip() if planned or found else ""


def _small_shape() -> ModelShape:
    return shape_from_config({**SMALL, "model_type": "qwen2"})


def _sum(items: list[MemoryItem], names: tuple[str, ...]) -> int:
    return sum(item.bytes for item in items if item.name in names)


if __name__ == "__main__":
    main()
