"""How much memory one rank needs: arithmetic on the configuration and the model's sizes, item by item. No model is
loaded."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from rlhf.config.lengths import most_completion_tokens
from rlhf.config.model_shapes import ModelShape
from rlhf.config.optimizer_memory import residual_bytes, state_bytes, trained_tensors
from rlhf.config.rollouts import ServerEngineConfig, VllmEngineConfig

BYTES = {"float32": 4, "bfloat16": 2}
GIB = 1024**3
# logits that the streamed LM head holds at once, and for how many tokens at least (as rlhf/models/head_block.py)
HEAD_BLOCK_BYTES = {"cpu": 48 * 2**20, "cuda": 256 * 2**20}
HEAD_BLOCK_TOKENS = 128


@dataclass(frozen=True)
class MemoryItem:
    """One line of the plan."""

    name: str
    bytes: int
    formula: str


@dataclass(frozen=True)
class MemoryPlan:
    """The memory of one rank. Leaves out the framework itself (about 1 GiB on CUDA) and fragmentation."""

    items: tuple[MemoryItem, ...]
    parameters: int
    trained_parameters: int

    @property
    def total_bytes(self) -> int:
        return sum(item.bytes for item in self.items)

    def render(self) -> str:
        """A table in plain text: GiB, item, how it is counted."""
        lines = [f"{self.parameters:,} parameters, {self.trained_parameters:,} trained"]
        rows = [
            *self.items,
            MemoryItem("total for one rank", self.total_bytes, "without the framework itself, and fragmentation"),
        ]
        width = max(len(row.name) for row in rows)
        lines += [f"  {row.bytes / GIB:9.3f} GiB  {row.name:<{width}}  {row.formula}" for row in rows]
        return "\n".join(lines)


def memory_plan(
    config: Any, shape: ModelShape, world_size: int = 1, zero_stage: int = 0, device: Literal["cpu", "cuda"] = "cpu"
) -> MemoryPlan:
    """The plan for one of `world_size` ranks.

    `zero_stage`: 0 replicates everything (DDP); 1 divides masters and optimizer state over the ranks; 2 also
    gradients; 3 also the weights (the same as FSDP's full sharding).
    In the formulas P is the number of parameters and T of trained ones.
    """
    model, b = config.model, BYTES[config.model.dtype]
    parameters = shape.parameters
    trained = shape.lora_parameters(model.lora.rank, model.lora.target_modules) if model.lora else parameters
    states_share, gradients_share, weights_share = (world_size if zero_stage >= stage else 1 for stage in (1, 2, 3))
    items = [_item("policy weights", parameters * b, weights_share, f"P x {b}")]
    beside = residual_bytes(config.optimizer)
    has_copies = beside == BYTES["float32"]
    if model.lora:
        items.append(_item("adapters", trained * 4, weights_share, "T x 4 (their own float32 masters)"))
    elif b < 4 and has_copies:
        items.append(_item("float32 masters", trained * 4, states_share, "T x 4"))
    elif b < 4 and beside:
        precision = config.optimizer.param_precision
        items.append(_item("lost bits of the weights", trained * beside, states_share, f"T x {beside} ({precision})"))
    # without float32 copies gradients are summed in the precision of the weights
    summed = 4 if has_copies or model.lora else b
    items.append(_item("gradients", trained * summed, gradients_share, f"T x {summed}"))
    if b < summed and not model.lora:
        items.append(_item("gradients of a micro-batch", trained * b, gradients_share, f"T x {b}"))
    states = state_bytes(config.optimizer, trained_tensors(shape, model.lora))
    a_weight = f"{states / trained:.3g}"
    items.append(_item("optimizer state", states, states_share, f"T x {a_weight} ({config.optimizer.type})"))
    if config.algorithm.needs_reference_model and not model.lora:
        items.append(_item("reference policy", parameters * b, weights_share, f"P x {b}"))
    items += _critic(config, shape)
    if zero_stage >= 3 and world_size > 1:
        gathered = shape.block_parameters + shape.vocabulary * shape.hidden
        items.append(_item("gathered weights", gathered * b, 1, f"(one block + LM head) x {b}"))
    items += [_activations(config, shape, world_size), _head(config, shape, world_size, device)]
    return MemoryPlan((*items, *_engine(config, shape, world_size, device)), parameters, trained)


def micro_batch_tokens(config: Any, world_size: int) -> int:
    """Tokens of the largest micro-batch: the budget, or all tokens of an optimizer step where those are fewer.

    A packed micro-batch holds each prompt once for all its completions, a padded one once for each completion.
    """
    prompts = max(1, config.batch.prompts_per_step // (world_size * config.batch.minibatches))
    prompt, completion, group = (
        config.data.max_prompt_tokens,
        most_completion_tokens(config),
        config.sampling.samples_per_prompt,
    )
    if config.model.attention == "packed":
        most = prompts * (prompt + group * completion)
    else:
        most = prompts * group * (prompt + completion)
    # a sample that is longer than the budget is a micro-batch of its own
    return min(most, max(config.batch.tokens_per_micro_batch, prompt + completion))


def activation_bytes(shape: ModelShape, tokens: int, b: int, has_checkpointing: bool) -> int:
    """What autograd keeps of the decoder blocks for `tokens` tokens; `b` bytes a number, float32 inside the norms.

    One block keeps, for each token, 2 (4 + 2b) H for the two norms (float32 input, normalised, scaled),
    b (2 A + 2 K) for queries, keys, values and the attention's output, and 4 b I for the gated MLP, where H is the
    hidden size, A and K the widths of queries and keys, and I the MLP's width. Attention scores are not kept: packed
    attention and fused kernels recompute them.
    With gradient checkpointing every block keeps its input, b H, and one block at a time keeps all.
    """
    block = 2 * (4 + 2 * b) * shape.hidden + b * (2 * shape.query_width + 2 * shape.kv_width + 4 * shape.intermediate)
    if has_checkpointing:
        return tokens * (shape.layers * b * shape.hidden + block)
    return tokens * shape.layers * block


def _critic(config: Any, shape: ModelShape) -> list[MemoryItem]:
    """A critic with a trunk of its own; a head on the policy's states is one vector."""
    critic = getattr(config.algorithm, "critic", None)
    if critic is None or critic.trunk != "separate":
        return []
    parameters, b = shape.parameters, BYTES[config.model.dtype]
    beside = residual_bytes(critic.optimizer) if b < 4 else 0
    summed = 4 if beside in (0, BYTES["float32"]) else b
    states = state_bytes(critic.optimizer, trained_tensors(shape, None))
    a_weight = b + beside + summed + states / parameters
    amount = int(parameters * a_weight)
    return [MemoryItem("critic", amount, f"P x {a_weight:.3g}: weights, gradients, optimizer state")]


def _activations(config: Any, shape: ModelShape, world_size: int) -> MemoryItem:
    tokens = micro_batch_tokens(config, world_size)
    has_checkpointing = config.model.gradient_checkpointing
    amount = activation_bytes(shape, tokens, BYTES[config.model.dtype], has_checkpointing)
    kept = f"{shape.layers} block inputs and 1 block" if has_checkpointing else f"{shape.layers} blocks"
    return MemoryItem("activations", amount, f"{tokens:,} tokens of one micro-batch, {kept}")


def _head(config: Any, shape: ModelShape, world_size: int, device: str) -> MemoryItem:
    b, tokens = BYTES[config.model.dtype], micro_batch_tokens(config, world_size)
    block = min(max(HEAD_BLOCK_BYTES[device], HEAD_BLOCK_TOKENS * shape.vocabulary * b), tokens * shape.vocabulary * b)
    # hidden states and their gradient; the head's own gradient is summed in float32 where the head is trained
    amount = block + 2 * tokens * shape.hidden * b + (0 if config.model.lora else shape.vocabulary * shape.hidden * 4)
    return MemoryItem("LM head", amount, "a block of logits, hidden states, float32 sum of the head's gradient")


def _engine(config: Any, shape: ModelShape, world_size: int, device: str) -> list[MemoryItem]:
    engine = config.engine
    b = BYTES[config.model.dtype if engine.dtype == "auto" else engine.dtype]
    if isinstance(engine, ServerEngineConfig):
        # the servers' own memory is theirs; here is what the trainer keeps for them
        formula = f"P x {b} in {engine.weights_folder}, on the main rank only"
        return [MemoryItem("weights for the rollout servers", shape.parameters * b, formula)]
    items = [MemoryItem("engine weights", shape.parameters * b, f"P x {b}")]
    if isinstance(engine, VllmEngineConfig) and device == "cpu":
        return [
            *items,
            MemoryItem("engine key-value cache", int(engine.cpu_kv_cache_gib * GIB), "engine.cpu_kv_cache_gib"),
        ]
    at_once = engine.max_num_seqs if isinstance(engine, VllmEngineConfig) else engine.max_rows
    prompts = max(1, config.batch.prompts_per_step // world_size)
    rows = min(at_once, prompts * config.sampling.samples_per_prompt)
    length = config.data.max_prompt_tokens + most_completion_tokens(config)
    amount = rows * length * 2 * shape.layers * shape.kv_width * b
    formula = f"{rows} completions x {length:,} tokens"
    if isinstance(engine, VllmEngineConfig):
        formula += f"; vLLM reserves {engine.gpu_memory_utilization:.0%} of the card for weights and cache"
    return [*items, MemoryItem("engine key-value cache", amount, formula)]


def _item(name: str, amount: int, share: int, formula: str) -> MemoryItem:
    return MemoryItem(name, math.ceil(amount / share), formula + (f" / {share} ranks" if share > 1 else ""))
