"""Run by torchrun: do optimizers take the steps of one process under DeepSpeed ZeRO, and go on after a checkpoint?

Argument: a folder for checkpoints.
"""

import gc
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param
from torch import Tensor

from rlhf.optim.layout import attached
from rlhf.optim.zero import attach_zero_layout
from tests.optim.given_gradients import (
    CASES,
    SAVED_AFTER,
    STEPS,
    WARMUP,
    Case,
    GivenModel,
    assert_same,
    chunk_trajectory,
    gradients_of,
    state_bytes,
    trajectory,
    warm_up,
)

NEEDS_WHOLE = ("frugal_columns_project", "frugal_svd", "auon_hybrid")
IN_ALL = ("adabelief", "frugal_chunk", "frugal_columns", "frugal_block_budget", "auon")
"""Under each stage and with low-precision weights; the others under those two stages that lay partitions out
differently."""
STAGES = (1, 2, 3)
PADDING = 7.0
"""Put into what lies between and behind the tensors, where any update would show."""
# an extension that gloo does without; building it takes minutes
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def main(folder: str) -> None:
    """Raises AssertionError on a rank whose weights differ."""
    deepspeed.init_distributed("gloo")
    # each engine collects garbage, half a second over all that was imported
    gc.freeze()
    assert dist.get_world_size() == 2
    for stage in STAGES:
        for name, case in CASES.items():
            is_refused = name in NEEDS_WHOLE or (name == "frugal_block_budget" and stage < 3)
            if is_refused or (name not in IN_ALL and stage == 2):
                continue
            for dtype in (torch.float32, torch.bfloat16) if name in IN_ALL else (torch.float32,):
                what = f"{name} under ZeRO-{stage} in {dtype}"
                check(what, case, config(stage, dtype), Path(folder) / what.replace(" ", "_"))
    check_variants(Path(folder))
    check_warm_up()
    check_refusals()
    check_balance()
    dist.destroy_process_group()


def config(stage: int, dtype: torch.dtype = torch.float32, **zero: Any) -> dict[str, Any]:
    small = {"stage3_param_persistence_threshold": 0} if stage == 3 else {}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "zero_allow_untested_optimizer": True,
        # DeepSpeed clips to a norm of 1 unless told not to
        "gradient_clipping": 0.0,
        "zero_optimization": {"stage": stage} | small | zero,
        "bf16": {"enabled": dtype == torch.bfloat16},
    }


def start(case: Case, settings: Mapping[str, Any], **changes: Any) -> Any:
    """An engine over a new model; its optimizer has a group without members, as a run with LoRA can have one."""
    model = GivenModel()
    optimizer = case.optimizer(model, **changes)
    optimizer.add_param_group({"params": [], "param_names": [], "role": "full"})
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=dict(settings))
    return engine


def step(engine: Any, index: int) -> None:
    warm_up(engine.optimizer.optimizer, index)
    engine.backward(engine(gradients_of(index, dist.get_rank())))
    engine.step()


def masters(engine: Any) -> dict[str, Tensor]:
    return {name: safe_get_full_fp32_param(parameter).clone() for name, parameter in engine.module.named_parameters()}


def check(what: str, case: Case, settings: Mapping[str, Any], folder: Path) -> None:
    engine = start(case, settings)
    attach_zero_layout(engine)
    padding = plant_padding(engine)
    for index in range(STEPS):
        if index == SAVED_AFTER:
            engine.save_checkpoint(folder)
        step(engine, index)
    straight = masters(engine)
    if "8bit" in what:
        # blocks of 256 elements lie elsewhere in partitions than in tensors
        pass
    elif case.settings.get("selector") == "chunk":
        expected = chunk_trajectory(case, cuts(engine))
        assert_same(straight, expected, what, is_exact=False)
    else:
        assert_same(straight, trajectory(case), what, case.is_exact)
    for flat, index in padding:
        assert (flat[index] == PADDING).all(), f"{what}: padding was updated"
    engine.destroy()

    engine = start(case, settings, lr=123.0)
    attach_zero_layout(engine)
    engine.load_checkpoint(folder)
    for index in range(SAVED_AFTER, STEPS):
        step(engine, index)
    assert_same(masters(engine), straight, f"{what} after loading", is_exact=True)
    engine.destroy()


def flats(engine: Any) -> list[tuple[Tensor, Mapping[str, Any]]]:
    """The flat partitions of this rank with their group."""
    zero = engine.optimizer
    if hasattr(zero, "fp32_partitioned_groups_flat"):
        owners = [zero.sub_group_to_group_id[index] for index in range(len(zero.fp32_partitioned_groups_flat))]
        return [
            (flat, zero.optimizer.param_groups[owner])
            for flat, owner in zip(zero.fp32_partitioned_groups_flat, owners, strict=True)
        ]
    return [(group["params"][0], group) for group in zero.optimizer.param_groups]


def plant_padding(engine: Any) -> list[tuple[Tensor, Tensor]]:
    """The elements of partitions that belong to no tensor; every other element is its tensor's."""
    planted = []
    weights = GivenModel().state_dict()
    for flat, group in flats(engine):
        is_padding = torch.ones(flat.numel(), dtype=torch.bool)
        for piece in attached(flat).pieces:
            here = slice(piece.offset, piece.offset + piece.numel)
            assert is_padding[here].all()
            is_padding[here] = False
            assert torch.equal(flat[here], weights[piece.name].view(-1)[piece.start : piece.start + piece.numel])
        # the elementwise rule passes over padding too, whose weights and gradients are zero
        if group["role"] != "full":
            flat.data[is_padding] = PADDING
            planted.append((flat, is_padding))
    return planted


def cuts(engine: Any) -> dict[str, list[tuple[int, int]]]:
    """Start and length of the pieces of each tensor, over all ranks, which must make up the whole."""
    mine = [(piece.name, piece.start, piece.numel) for flat, _ in flats(engine) for piece in attached(flat).pieces]
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    pieces: dict[str, list[tuple[int, int]]] = {}
    for name, start, numel in sorted(piece for rank in everyone for piece in rank):
        pieces.setdefault(name, []).append((start, numel))
    for name, weight in GivenModel().state_dict().items():
        ends = [0]
        for start, numel in pieces[name]:
            assert start == ends[-1], f"{name} has a gap or an overlap at {start}"
            ends.append(start + numel)
        assert ends[-1] == weight.numel(), name
    return pieces


def check_variants(folder: Path) -> None:
    """Other ways to lay partitions out: each is a layout of its own."""
    both = {"overlap_comm": False, "round_robin_gradients": True, "parameter_alignment": True}
    bf16 = config(1, torch.bfloat16) | {"data_types": {"grad_accum_dtype": "fp32"}}
    offload = {"offload_optimizer": {"device": "cpu", "pin_memory": False}}
    variants = {
        "aligned tensors in another order": config(2, **both),
        "several sub-groups": config(3, sub_group_size=5_000),
        "offloaded optimizers, stage 2": config(2, **offload) | {"zero_force_ds_cpu_optimizer": False},
        "offloaded optimizers, stage 3": config(3, **offload) | {"zero_force_ds_cpu_optimizer": False},
    }
    for what, settings in variants.items():
        for name in ("frugal_chunk", "frugal_columns_bfloat16", "auon"):
            check(f"{name} with {what}", CASES[name], settings, folder / f"{name}_{what.replace(' ', '_')}")
    check("sub-groups", CASES["frugal_block_budget"], variants["several sub-groups"], folder / "block_of_sub_groups")
    check("the bfloat16 optimizer", CASES["auon"], bf16, folder / "bfloat16_optimizer")
    check_born_partitioned()
    check_low_precision_masters()


def check_warm_up() -> None:
    """A first step of learning rate 0, where the second rank sees no gradient, is a step for both."""
    steps = (WARMUP, *range(STEPS))
    for stage in STAGES:
        engine = start(CASES["frugal_columns"], config(stage))
        attach_zero_layout(engine)
        for index in steps:
            step(engine, index)
        expected = trajectory(CASES["frugal_columns"], steps)
        assert_same(masters(engine), expected, f"ZeRO-{stage} after a warm-up", is_exact=True)
        engine.destroy()


def check_born_partitioned() -> None:
    """Parameters that are partitioned as soon as they are made, so that groups are built from empty ones."""
    settings = config(3)
    with deepspeed.zero.Init(config_dict_or_path=settings):
        model = GivenModel(fill=False)
    with deepspeed.zero.GatheredParameters(list(model.parameters()), modifier_rank=0):
        model.fill()
    engine, *_ = deepspeed.initialize(model=model, optimizer=CASES["auon"].optimizer(model), config=settings)
    attach_zero_layout(engine)
    for index in range(STEPS):
        step(engine, index)
    assert_same(masters(engine), trajectory(CASES["auon"]), "auon, born partitioned", is_exact=False)
    engine.destroy()


def check_low_precision_masters() -> None:
    """bfloat16 masters, rounded by hash: bitwise those of one process."""
    settings = config(2, torch.bfloat16)
    settings["bf16"] |= {"bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}
    case = CASES["frugal_columns_bfloat16"]
    refused(case, settings, "set param_precision to sr or split16")
    for precision in ("sr", "split16"):
        engine = start(case, settings, param_precision=precision)
        attach_zero_layout(engine)
        for index in range(STEPS):
            step(engine, index)
        expected = trajectory(case, model=GivenModel().bfloat16(), param_precision=precision)
        expected = {name: weight.float() for name, weight in expected.items()}
        assert_same(masters(engine), expected, f"bfloat16 masters with {precision}", is_exact=True)
        engine.destroy()


def check_refusals() -> None:
    for stage in (1, 2):
        refused(CASES["frugal_block_budget"], config(stage), "Use chunk or columns, or stage 3")
    refused(CASES["frugal_columns"], config(3), "selector svd needs whole rows", selector="svd")
    refused(CASES["frugal_columns_project"], config(1), "state_mode project carries moments tensor by tensor")
    refused(CASES["auon_hybrid"], config(3), "ns_steps = 1 needs whole matrices")
    refused(CASES["auon"], config(1, elastic_checkpoint=True), "set it to false")
    for name in ("frugal_columns", "auon", "adabelief_bounded"):
        engine = start(CASES[name], config(2))
        raised(lambda engine=engine: step(engine, 0), "call rlhf.optim.zero.attach_zero_layout(engine)")
        engine.destroy()
    engine = start(CASES["auon"], config(0))
    try:
        attach_zero_layout(engine)
    except TypeError as error:
        assert "AuON is no ZeRO optimizer" in str(error), error
    else:
        raise AssertionError("stage 0 was taken for ZeRO")


def refused(case: Case, settings: Mapping[str, Any], message: str, **changes: Any) -> None:
    engine = start(case, settings, **changes)
    raised(lambda: attach_zero_layout(engine), message)
    engine.destroy()


def raised(call: Callable[[], None], message: str) -> None:
    try:
        call()
    except ValueError as error:
        assert message in str(error), error
    else:
        raise AssertionError(f"nothing was raised, expected: {message}")


def check_balance() -> None:
    """The ranks have alike much state under the default selector, in every epoch."""
    for stage in STAGES:
        engine = start(CASES["frugal_chunk"], config(stage), selector="auto")
        attach_zero_layout(engine)
        for index in range(STEPS):
            step(engine, index)
            sizes: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(sizes, state_bytes(engine.optimizer.optimizer))
            assert max(sizes) <= 1.25 * min(sizes), f"ZeRO-{stage}: {sizes}"
        engine.destroy()


if __name__ == "__main__":
    main(sys.argv[1])
