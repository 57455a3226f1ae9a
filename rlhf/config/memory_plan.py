"""How much memory one rank needs: arithmetic on the configuration and the model's sizes, item by item. No model is
loaded."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from rlhf.config.division import Division
from rlhf.config.held_memory import ensemble_items, reward_model_items
from rlhf.config.lengths import most_completion_tokens
from rlhf.config.memory_items import BYTES, GIB, MemoryItem, Place, item
from rlhf.config.model_shapes import ModelShape
from rlhf.config.rollouts import ServerEngineConfig, VllmEngineConfig
from rlhf.config.trained_memory import frozen_items, start_items, trained_items

# logits that the streamed LM head holds at once, and for how many tokens at least (as rlhf/models/head_block.py)
HEAD_BLOCK_BYTES = {"cpu": 48 * 2**20, "cuda": 256 * 2**20}
HEAD_BLOCK_TOKENS = 128


@dataclass(frozen=True)
class MemoryPlan:
    """The memory of one rank. Leaves out the framework itself (about 1 GiB on CUDA) and fragmentation."""

    items: tuple[MemoryItem, ...]
    parameters: int
    trained_parameters: int
    at_start: tuple[MemoryItem, ...] = ()
    """Needed for a moment while the model is loaded, and not later: no part of the totals."""

    @property
    def total_bytes(self) -> int:
        """On the device."""
        return self.bytes_in("device")

    @property
    def host_bytes(self) -> int:
        return self.bytes_in("host")

    @property
    def peak_bytes(self) -> int:
        """On the device, at the start or later."""
        return max(self.total_bytes, sum(part.bytes for part in self.at_start if part.place == "device"))

    def bytes_in(self, place: Place) -> int:
        return sum(part.bytes for part in self.items if part.place == place)

    def render(self) -> str:
        """A table in plain text: GiB, item, how it is counted; what lies in host memory apart."""
        rows = [part for part in self.items if part.place == "device"]
        rows.append(item("total for one rank", self.total_bytes, "without the framework itself, and fragmentation"))
        if self.host_bytes:
            rows += [part for part in self.items if part.place == "host"]
            rows.append(item("total in host memory", self.host_bytes, "for one rank, of several on a machine", "host"))
        rows += [replace(part, formula=f"{part.formula}; at the start only") for part in self.at_start]
        width = max(len(row.name) for row in rows)
        lines = [f"{self.parameters:,} parameters, {self.trained_parameters:,} trained"]
        for row in rows:
            note = "host: " if row.place == "host" else ""
            lines.append(f"  {row.bytes / GIB:9.3f} GiB  {row.name:<{width}}  {note}{row.formula}")
        return "\n".join(lines)


def memory_plan(
    config: Any, shape: ModelShape, division: Division | None = None, device: Literal["cpu", "cuda"] = "cpu"
) -> MemoryPlan:
    """The plan for one of the ranks among which `division` shares the model; for one process where there is none.

    In the formulas P is the number of parameters and T of trained ones.
    """
    division = division or Division()
    plan = learner_plan(config, shape, division, device)
    beside = (*reward_model_items(config), *_engine(config, shape, division.ranks, device))
    return replace(plan, items=(*plan.items, *beside))


def learner_plan(
    config: Any, shape: ModelShape, division: Division, device: Literal["cpu", "cuda"] = "cpu"
) -> MemoryPlan:
    """As `memory_plan`, without the engine that generates and the models that score."""
    model, parameters = config.model, shape.parameters
    if not config.algorithm.trains_policy:
        return _reading_plan(config, shape, division, device)
    trained = shape.lora_parameters(model.lora.rank, model.lora.target_modules) if model.lora else parameters
    items = trained_items(model, config.optimizer, shape, division)
    if config.algorithm.needs_reference_model and not model.lora:
        items += frozen_items("reference policy", model.dtype, shape, division)
    items += [*_critic(config, shape, division), *ensemble_items(config, shape)]
    items += [_activations(config, shape, division.ranks), _head(config, shape, division.ranks, device)]
    start = start_items(model, config.optimizer, shape, division)
    return MemoryPlan(tuple(items), parameters, trained, tuple(start))


def _reading_plan(
    config: Any, shape: ModelShape, division: Division, device: Literal["cpu", "cuda"]
) -> MemoryPlan:
    """Of a learner whose policy is never trained: a block's activations are let go when the next one is computed."""
    model, tokens = config.model, micro_batch_tokens(config, division.ranks)
    b = BYTES[model.dtype]
    block = activation_bytes(replace(shape, layers=1), tokens, b, has_checkpointing=False)
    items = [
        *frozen_items("policy weights", model.dtype, shape, division),
        MemoryItem("activations", block, f"{tokens:,} tokens of one micro-batch, 1 block"),
        _head(config, shape, division.ranks, device),
        *ensemble_items(config, shape),
    ]
    loaded = item("the model as it is loaded", shape.parameters * b, f"P x {b}", "host")
    return MemoryPlan(tuple(items), shape.parameters, 0, (loaded,))


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


def _critic(config: Any, shape: ModelShape, division: Division) -> list[MemoryItem]:
    """A critic with a trunk of its own, divided as the policy is; a head on the policy's states is one vector."""
    critic = getattr(config.algorithm, "critic", None)
    if critic is None or critic.trunk != "separate":
        return []
    parts = trained_items(config.model, critic.optimizer, shape, division)
    formula = "as the policy: weights, gradients, optimizer state"
    totals = {place: sum(part.bytes for part in parts if part.place == place) for place in ("device", "host")}
    return [item("critic", amount, formula, place) for place, amount in totals.items() if amount]


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
    amount, formula = block + 2 * tokens * shape.hidden * b, "a block of logits, hidden states"
    if config.algorithm.trains_policy and not config.model.lora:
        amount, formula = amount + shape.vocabulary * shape.hidden * 4, f"{formula}, float32 sum of the head's gradient"
    return MemoryItem("LM head", amount, formula)


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
