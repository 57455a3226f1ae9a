"""Run by torchrun: what a rank holds of a trained model, counted storage by storage, in one optimizer step.

Arguments: a model, its dtype, an optimizer's settings as JSON, the rank of adapters (0: all weights are trained), and
the file that each rank's counts go to (its rank is appended). The method is read from the launch's variables.
"""

import gc
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch.distributed as dist
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from rlhf.config.model import ModelConfig
from rlhf.config.optimizer import OptimizerConfig
from rlhf.config.sharding import sharding_from_environment
from rlhf.models.packing import TrainingSequence, pack
from rlhf.training.build_weights import Weights, load_trained_policy, make_weights
from rlhf.training.launch_checks import check_launch, start_accelerator
from rlhf.training.optimizers import build_optimizer, keeps_master_copies

MICRO_BATCHES, TOKENS = 2, 16
NAMES = ("weights", "masters", "state", "gradients", "buckets")
"""What a storage is counted as; the first that it belongs to, and `other` where it belongs to none."""


def main(model: str, dtype: str, optimizer: str, lora_rank: str, out: str) -> None:
    """Write what this rank has when all is built, after the backward passes, in the optimizer's step and after it."""
    sharding = sharding_from_environment(os.environ)
    accelerator = start_accelerator(sharding)
    if int(os.environ["WORLD_SIZE"]) > 1:
        check_launch(accelerator, sharding)
    settings = TypeAdapter(OptimizerConfig).validate_python(json.loads(optimizer))
    lora = {"rank": int(lora_rank)} if lora_rank != "0" else None
    config = ModelConfig.model_validate({"path": model, "dtype": dtype, "lora": lora})
    copies = keeps_master_copies(settings)
    policy = load_trained_policy(config, accelerator, sharding, copies=copies)
    named = {name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}
    weights = make_weights(
        policy, named, lambda masters: build_optimizer(settings, policy, masters), accelerator, sharding, copies=copies
    )
    counts = {"built": count(policy, weights)}

    def in_step(*_: Any) -> None:
        # DeepSpeed steps group by group: the fullest moment
        now = count(policy, weights)
        known = counts.get("in step")
        if known is None or sum(now.values()) > sum(known.values()):
            counts["in step"] = now

    batch = pack([TrainingSequence(tuple(range(TOKENS)), tuple(range(TOKENS)))]).to(accelerator.device)
    weights.zero_gradients()
    for index in range(MICRO_BATCHES):
        output = weights.module(batch, lambda logp, entropy, rows: -logp / TOKENS)
        weights.backward(output.loss, is_last=index == MICRO_BATCHES - 1)
        del output
    weights.reduce_gradients()
    counts["backward"] = count(policy, weights)
    weights.optimizer.register_step_pre_hook(in_step)
    weights.step()
    counts["after"] = count(policy, weights)
    Path(f"{out}.{accelerator.process_index}").write_text(json.dumps(counts))
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


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
        pointers = {local.untyped_storage().data_ptr() for tensor in tensors for local in [_local(tensor)]}
        found[name] = sum(left.pop(pointer, 0) for pointer in pointers)
    return found | {"other": sum(left.values())}


def _groups(policy: nn.Module, weights: Weights) -> Iterator[Iterable[Tensor]]:
    parameters = list(policy.parameters())
    shards = [parameter.ds_tensor for parameter in parameters if hasattr(parameter, "ds_tensor")]
    masters = [flat for flat, _, _ in weights.buffers()] if weights.is_sharded else weights.masters
    zero = getattr(weights, "zero", None)
    yield [*parameters, *shards]
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
            is_tensor = isinstance(thing, Tensor)
        except ReferenceError:
            continue
        if not is_tensor or thing.device.type == "meta":
            continue
        local = _local(thing)
        if type(local).__name__ in ("FakeTensor", "FunctionalTensor"):
            continue
        yield local
        if thing.is_leaf and thing.grad is not None:
            yield _local(thing.grad)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


if __name__ == "__main__":
    main(*sys.argv[1:])
