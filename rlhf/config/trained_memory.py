"""What one rank holds of a model that is trained, and of one that is only read, by how the ranks share it.

Written after what `rlhf/training/` builds and what torch's `fully_shard` and DeepSpeed allocate for it;
`benchmarks/memory_table.py --measure` compares. In the formulas P is the number of parameters and T of trained ones.
"""

from collections.abc import Callable, Iterable

from rlhf.config.division import Division
from rlhf.config.memory_items import BYTES, MemoryItem, Place, item
from rlhf.config.model import ModelConfig
from rlhf.config.model_shapes import ModelShape
from rlhf.config.optimizer import OptimizerConfig
from rlhf.config.optimizer_memory import TrainedTensor, residual_bytes, state_bytes, trained_tensors

REDUCE_BUCKET = 500_000_000
"""Elements that DeepSpeed reduces at a time (its `reduce_bucket_size`); all that are trained where they are fewer."""
MOST_REUSED = 500_000_000
"""ZeRO-3 keeps a gathered weight that is used again within 10^9 elements (`stage3_max_reuse_distance`): on the way back
those of the last half of that."""
PREFETCHED = 50_000_000
"""Elements that ZeRO-3 gathers ahead (`stage3_prefetch_bucket_size`)."""
PERSISTENT = 100_000
"""ZeRO-3 leaves tensors of up to so many elements whole on every rank too (`stage3_param_persistence_threshold`)."""
SUB_GROUP = 1_000_000_000
"""Elements of its partition that ZeRO-3 steps at a time (`sub_group_size`)."""


def trained_items(
    model: ModelConfig, optimizer: OptimizerConfig, shape: ModelShape, division: Division
) -> list[MemoryItem]:
    """Weights, masters, gradients, optimizer state, and what is gathered and reduced on the way, of one rank.

    All lines together are what is needed if nothing is freed; some never meet (gathered weights and a step's copies).
    """
    whole, trained = trained_tensors(shape), trained_tensors(shape, model.lora)
    match division.sharding:
        case "ddp":
            return _replicated(model, optimizer, whole, trained)
        case "fsdp2":
            return _fsdp2(model, optimizer, shape, trained, division)
        case "zero1" | "zero2":
            return _stages_1_and_2(model, optimizer, whole, trained, division)
    return _stage_3(model, optimizer, shape, trained, division)


def start_items(
    model: ModelConfig, optimizer: OptimizerConfig, shape: ModelShape, division: Division
) -> list[MemoryItem]:
    """What a rank needs for a moment at the start: each loads the model whole into host memory, and checks it;
    DeepSpeed divides it on the device."""
    b = BYTES[model.dtype]
    has_masters = division.sharding == "fsdp2" and model.lora is None and residual_bytes(optimizer) == 4
    loaded = 4 if has_masters else b
    items = [item("the model as it is loaded", shape.parameters * loaded, f"P x {loaded}", "host")]
    if division.sharding.startswith("zero"):
        # stages 1 and 2 copy what is trained into one flat tensor beside it
        flat = _numel(trained_tensors(shape, model.lora)) if division.sharding in ("zero1", "zero2") else 0
        formula = f"P x {b}" + (f" + T x {b}" if flat else "") + ", before it is divided"
        items.append(item("the model as it is divided", (shape.parameters + flat) * b, formula))
    return items


def frozen_items(name: str, dtype: str, shape: ModelShape, division: Division) -> list[MemoryItem]:
    """A model without gradients, e.g. the reference: in FSDP2's shards where the trained one is divided."""
    b = BYTES[dtype]
    if division.sharding not in ("fsdp2", "zero3", "zero3_offload"):
        return [item(name, shape.parameters * b, f"P x {b}")]
    shards = division.elements(trained_tensors(shape), "fsdp2")
    place: Place = "host" if division.is_on_host else "device"
    gathered = _fsdp2_gathered(shape, division)
    return [
        item(name, shards * b, _shared(f"P x {b}", division), place),
        item(f"gathered of {name}", gathered * b, f"(tables + 2 blocks) x {b}"),
    ]


def _replicated(
    model: ModelConfig, optimizer: OptimizerConfig, whole: list[TrainedTensor], trained: list[TrainedTensor]
) -> list[MemoryItem]:
    b, parameters, count = BYTES[model.dtype], _numel(whole), _numel(trained)
    items = [item("policy weights", parameters * b, f"P x {b}")]
    beside = residual_bytes(optimizer)
    has_copies = beside == BYTES["float32"]
    if model.lora:
        items.append(item("adapters", count * 4, "T x 4 (their own float32 masters)"))
    elif b < 4 and has_copies:
        items.append(item("float32 masters", count * 4, "T x 4"))
    elif b < 4 and beside:
        items.append(_lost_bits(optimizer, count, beside, ""))
    # without float32 copies gradients are summed in the precision of the weights
    summed = 4 if has_copies or model.lora else b
    items.append(item("gradients", count * summed, f"T x {summed}"))
    if b < summed and not model.lora:
        items.append(item("gradients of a micro-batch", count * b, f"T x {b}"))
    return [*items, _state(optimizer, trained, lambda tensor: tensor.numel, Division())]


def _fsdp2(
    model: ModelConfig, optimizer: OptimizerConfig, shape: ModelShape, trained: list[TrainedTensor], division: Division
) -> list[MemoryItem]:
    b, beside = BYTES[model.dtype], residual_bytes(optimizer)
    place: Place = "host" if division.is_on_host else "device"
    has_copies = beside == BYTES["float32"]
    # the shards are the masters, and cast to the computing precision when they are gathered
    stored = 4 if has_copies and model.lora is None else b
    shards, count = division.elements(trained_tensors(shape)), division.elements(trained)
    formula = f"P x {stored}" + (" (they are the float32 masters)" if stored > b else "")
    items = [item("policy weights", shards * stored, _shared(formula, division), place)]
    if model.lora:
        items.append(item("adapters", count * 4, _shared("T x 4 (their own float32 masters)", division), place))
    elif b < 4 and not has_copies and beside:
        items.append(_lost_bits(optimizer, count, beside, _shared("", division), place))
    summed = 4 if model.lora else stored
    items.append(item("gradients", count * summed, _shared(f"T x {summed}", division), place))
    items.append(_state(optimizer, trained, division.elements_of, division, place))
    gathered = _fsdp2_gathered(shape, division)
    which = "P" if division.keeps_gathered else "(tables + 2 blocks)"
    items.append(item("gathered weights", gathered * b, f"{which} x {b}"))
    if model.lora is None:
        largest = max(_root(shape), shape.block_parameters)
        formula = f"(the larger of tables and block) x {b + 4}: whole, and in float32 to be summed over ranks"
        items.append(item("gradients being reduced", largest * (b + 4), formula))
    return items


def _stages_1_and_2(
    model: ModelConfig, optimizer: OptimizerConfig, whole: list[TrainedTensor], trained: list[TrainedTensor],
    division: Division,
) -> list[MemoryItem]:  # fmt: skip
    b, count = BYTES[model.dtype], _numel(trained)
    items = [item("policy weights", _numel(whole) * b, f"P x {b}")]
    if model.lora:
        items.append(item("adapters", count * b, f"T x {b} (DeepSpeed has them in the base's precision)"))
    alignment = 2 * division.ranks
    share = -(-count // alignment) * alignment // division.ranks
    # DeepSpeed copies float32 weights too
    items.append(item("float32 masters", share * 4, _shared("T x 4", division)))
    if division.sharding == "zero1" and b < 4:
        items += [
            item("gradients", count * 4, "T x 4 (stage 1 sums bfloat16 gradients in a whole float32 one)"),
            item("gradients of a micro-batch", count * b, f"T x {b}"),
            _reduce_bucket(count, 4),
        ]
    elif division.sharding == "zero1":
        items += [
            item("gradients", count * 4, "T x 4 (divided at the end of an optimizer step only)"),
            _reduce_bucket(count, 4),
        ]
    else:
        items.append(item("gradients", share * 4, _shared("T x 4", division)))
        if b == 4:
            # added to the others when it is divided; then a group's copy for the step may be as large
            items.append(item("gradients of a micro-batch", share * 4, _shared("T x 4", division)))
        items.append(_reduce_bucket(count, b))
        if b < 4:
            reduced = min(count, max(REDUCE_BUCKET, max(tensor.numel for tensor in trained)))
            items.append(_bucket(reduced, 4, "gradients being reduced", "elements, in float32"))
    items.append(_state(optimizer, trained, lambda tensor: tensor.numel / division.ranks, division))
    return items


def _stage_3(
    model: ModelConfig, optimizer: OptimizerConfig, shape: ModelShape, trained: list[TrainedTensor], division: Division
) -> list[MemoryItem]:
    b, whole = BYTES[model.dtype], trained_tensors(shape)
    is_offloaded = division.sharding == "zero3_offload"
    place: Place = "host" if is_offloaded else "device"
    shards, count = division.elements(whole), division.elements(trained)
    items = [item("policy weights", shards * b, _shared(f"P x {b}", division))]
    if model.lora:
        formula = _shared(f"T x {b} (DeepSpeed has them in the base's precision)", division)
        items.append(item("adapters", count * b, formula))
    small = [tensor for tensor in (whole if model.lora is None else [*whole, *trained]) if tensor.numel <= PERSISTENT]
    items.append(item("small weights, whole", _numel(small) * b, f"tensors of up to {PERSISTENT:,} elements x {b}"))
    # DeepSpeed copies float32 weights too
    items.append(item("float32 masters", count * 4, _shared("T x 4", division), place))
    items.append(item("gradients", count * 4, _shared("T x 4", division), place))
    if is_offloaded:
        items.append(item("gradients for the step", count * 4, _shared("T x 4", division), place))
    else:
        stepped = min(division.elements(_largest_group(optimizer, trained)), SUB_GROUP)
        formula = f"{stepped:,} elements x 4: the largest of the optimizer's groups, at most a sub-group at a time"
        items.append(item("gradients flattened for the step", stepped * 4, formula))
    items.append(_state(optimizer, trained, division.elements_of, division, place))
    all_whole = _numel(whole) + (_numel(trained) if model.lora else 0)
    most = max(tensor.numel for tensor in whole)
    gathered = min(all_whole, MOST_REUSED + PREFETCHED + shape.block_parameters + most) - _numel(small)
    items.append(item("gathered weights", gathered * b, f"{gathered:,} x {b}: those that are used again soon"))
    items.append(_reduce_bucket(_numel(trained), 4))
    reduced = min(_numel(trained), max(REDUCE_BUCKET, max(tensor.numel for tensor in trained)))
    items.append(_bucket(reduced, 4, "gradients being reduced", "elements, put in the order of the ranks"))
    return items


def _state(
    optimizer: OptimizerConfig, trained: list[TrainedTensor], on_rank: Callable[[TrainedTensor], float],
    division: Division, place: Place = "device",
) -> MemoryItem:  # fmt: skip
    amount = state_bytes(optimizer, trained, on_rank)
    a_weight = state_bytes(optimizer, trained) / _numel(trained)
    return item("optimizer state", amount, _shared(f"T x {a_weight:.3g} ({optimizer.type})", division), place)


def _lost_bits(optimizer: OptimizerConfig, count: int, beside: int, shared: str, place: Place = "device") -> MemoryItem:
    precision = getattr(optimizer, "param_precision", "native")
    return item("lost bits of the weights", count * beside, f"T x {beside} ({precision}){shared}", place)


def _reduce_bucket(trained: int, size: int) -> MemoryItem:
    return _bucket(min(trained, REDUCE_BUCKET), size, "reduce bucket", "elements of the gradient at a time")


def _bucket(elements: int, size: int, name: str, what: str) -> MemoryItem:
    return item(name, elements * size, f"{elements:,} {what} x {size}")


def _root(shape: ModelShape) -> int:
    """What FSDP2 gathers for the whole forward: embedding, LM head, last norm."""
    return (1 if shape.is_tied else 2) * shape.vocabulary * shape.hidden + shape.hidden


def _fsdp2_gathered(shape: ModelShape, division: Division) -> int:
    if division.keeps_gathered:
        return shape.parameters
    # the next block is gathered while one is computed with
    return _root(shape) + min(2, shape.layers) * shape.block_parameters


def _largest_group(optimizer: OptimizerConfig, trained: list[TrainedTensor]) -> list[TrainedTensor]:
    """DeepSpeed steps one of the optimizer's groups at a time: FRUGAL and AuON have matrices and the rest apart."""
    if optimizer.type not in ("frugal", "auon"):
        return trained
    matrices = [tensor for tensor in trained if tensor.is_large_matrix]
    return max(matrices, [tensor for tensor in trained if not tensor.is_large_matrix], key=_numel)


def _numel(tensors: Iterable[TrainedTensor]) -> int:
    return sum(tensor.count * tensor.numel for tensor in tensors)


def _shared(formula: str, division: Division) -> str:
    return formula + (f" / {division.ranks} ranks" if division.ranks > 1 else "")
