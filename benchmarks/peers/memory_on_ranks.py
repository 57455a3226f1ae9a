"""Run by torchrun: what a rank holds of a model that is trained, storage by storage, in one optimizer step.

Arguments: a cell (JSON: `{"model", "dtype", "optimizer", "lora_rank"}`), the method, and the file for what a rank
counts (its rank is appended). The launch's variables must ask for the method.
"""

import gc
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch.distributed as dist
from accelerate import Accelerator
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from rlhf.config.model import ModelConfig
from rlhf.config.optimizer import OptimizerConfig
from rlhf.config.sharding import Sharding
from rlhf.models.packing import TrainingSequence, pack
from rlhf.training.launch_checks import check_launch, start_accelerator
from rlhf.training.optimizers import build_optimizer, keeps_master_copies
from rlhf.training.weights.build import Weights, load_trained_policy, make_weights

MICRO_BATCHES, TOKENS = 2, 4
NAMES = ("weights", "masters", "state", "gradients", "buckets")
"""What a storage is counted as: the first that it belongs to, and `other` where it belongs to none."""
STATUS = Path("/proc/self/status")

Counts = dict[str, dict[str, int]]


def main(cell: str, method: Sharding, out: str) -> None:
    """Write the counts."""
    accelerator = start_accelerator(method)
    check_launch(accelerator, method)
    counts = measure(json.loads(cell), accelerator, method)
    Path(f"{out}.{accelerator.process_index}").write_text(json.dumps(counts), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


def measure(cell: dict[str, Any], accelerator: Accelerator, sharding: Sharding) -> Counts:
    """Bytes by moment and name: when all is built; at the head of the last micro-batch's forward pass; after its
    backward pass; in the optimizer's step; after it. `peak`: what the process's memory grew by at most."""
    optimizer = TypeAdapter(OptimizerConfig).validate_python(cell["optimizer"])
    lora = {"rank": cell["lora_rank"]} if cell["lora_rank"] else None
    config = ModelConfig.model_validate({"path": cell["model"], "dtype": cell["dtype"], "lora": lora})
    resident = _kilobytes("VmRSS")

    copies = keeps_master_copies(optimizer)
    policy = load_trained_policy(config, accelerator, sharding, copies=copies)
    named = {name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}
    weights = make_weights(
        policy, named, lambda masters: build_optimizer(optimizer, policy, masters), accelerator, sharding, copies=copies
    )
    counts: Counts = {}

    def note(moment: str) -> None:
        now, known = count(policy, weights), counts.get(moment, {})
        # DeepSpeed steps group by group: the most of each
        counts[moment] = {name: max(amount, known.get(name, 0)) for name, amount in now.items()}

    def objective(logp_n: Tensor, entropy_n: Tensor, rows: slice) -> Tensor:
        note("forward")
        return -logp_n / TOKENS

    note("built")
    # not token 0: a padding token's embedding is 0, and a norm of 0 multiplies gradients by a thousand
    ids = tuple(range(1, TOKENS + 1))
    batch = pack([TrainingSequence(ids, ids)]).to(accelerator.device)
    weights.zero_gradients()
    for index in range(MICRO_BATCHES):
        loss = weights.module(batch, objective).loss
        weights.backward(loss, is_last=index == MICRO_BATCHES - 1)
        del loss
    weights.reduce_gradients()
    note("backward")
    bad = [tuple(part.shape) for part in weights.gradients() if not bool(part.isfinite().all())]
    if bad:
        print(f"{sharding}, {cell}: gradients of shapes {bad} are not finite, and DeepSpeed takes no step", flush=True)
    weights.optimizer.register_step_pre_hook(lambda *_: note("step"))
    weights.step()
    note("after")
    counts["peak"] = {"bytes": 1024 * (_kilobytes("VmHWM") - resident)}
    return counts


def count(policy: nn.Module, weights: Weights) -> dict[str, int]:
    """Bytes by `NAMES`, and `other`: of every tensor that is alive."""
    gc.collect()
    left = {}
    for tensor in _alive():
        storage = tensor.untyped_storage()
        if storage.nbytes():
            left[storage.data_ptr()] = storage.nbytes()
    found = {}
    for name, tensors in zip(NAMES, _groups(policy, weights), strict=True):
        pointers = {_local(tensor).untyped_storage().data_ptr() for tensor in tensors}
        found[name] = sum(left.pop(pointer, 0) for pointer in pointers)
    return found | {"other": sum(left.values())}


def _groups(policy: nn.Module, weights: Weights) -> Iterator[Iterable[Tensor]]:
    parameters = list(policy.parameters())
    shards = [parameter.ds_tensor for parameter in parameters if hasattr(parameter, "ds_tensor")]
    # frozen ones too: while FSDP2 computes, a module has other parameters than its shards
    sharded = [
        parameter.sharded_param
        for module in policy.modules() if hasattr(module, "_get_fsdp_state")
        for group in [module._get_fsdp_state()._fsdp_param_group] if group is not None
        for parameter in group.fsdp_params
    ]  # fmt: skip
    masters = [flat for flat, _, _ in weights.buffers()] if weights.is_sharded else weights.masters
    zero = getattr(weights, "zero", None)
    yield [*parameters, *shards, *sharded]
    yield masters
    yield [value for state in weights.optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    gradients = [tensor.grad for tensor in (*parameters, *masters) if tensor.grad is not None]
    flat = getattr(zero, "grad_partitions_flat_buffer", None)
    yield [*gradients, *weights.gradients(), *([] if flat is None else [flat])]
    buffers = [bucket.buffer for bucket in getattr(zero, "ipg_buckets", {}).values()]
    yield [tensor for buffer in buffers for tensor in (buffer if isinstance(buffer, list) else [buffer])]


def _alive() -> Iterator[Tensor]:
    for thing in gc.get_objects():
        try:
            if not isinstance(thing, Tensor) or thing.device.type == "meta":
                continue
        except ReferenceError:
            continue
        local = _local(thing)
        if type(local).__name__ in ("FakeTensor", "FunctionalTensor"):
            continue
        yield local
        if thing.is_leaf and thing.grad is not None:
            yield _local(thing.grad)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _kilobytes(name: str) -> int:
    """Of the process's memory (proc(5))."""
    (line,) = [line for line in STATUS.read_text(encoding="utf-8").splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1])


if __name__ == "__main__":
    main(*sys.argv[1:])
