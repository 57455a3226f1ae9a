"""Optimizer state from the stretches of a sharded checkpoint: where it lies then."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rlhf.optim.layout import Pieces, pieces_of
from rlhf.training.weights.shard_files import ShardReader, write_shard
from rlhf.training.weights.sharded_state import load_stretches, stretches_of


class OneTensor:
    """One weight, as a rank that holds all of it has it."""

    def __init__(self, device: str, **settings: bool) -> None:
        self.parameter = nn.Parameter(torch.ones(6, device=device))
        self.optimizer = torch.optim.AdamW([self.parameter], lr=0.1)
        # settings are those of the groups: a fused step on no GPU cannot be asked for
        self.optimizer.param_groups[0].update(settings)

    def buffers(self) -> Iterator[tuple[Tensor, Tensor, Pieces]]:
        yield self.parameter, self.parameter.detach(), pieces_of(self.parameter, "weight")

    def publish(self) -> None:
        pass


@pytest.mark.parametrize(
    ("settings", "device"), [({"fused": True}, "meta"), ({"capturable": True}, "meta"), ({}, "cpu")]
)
def test_steps_are_counted_where_the_optimizer_counts_them(settings, device, tmp_path: Path) -> None:
    """As torch's own loading does: a fused AdamW refuses a count on the host (here no GPU, but another device)."""
    written = OneTensor("cpu")
    written.parameter.grad = torch.ones(6)
    written.optimizer.step()
    write_shard(tmp_path / "shard", stretches_of("policy", written))
    read = OneTensor("meta", **settings)
    load_stretches("policy", read, ShardReader([tmp_path / "shard"]))
    state = read.optimizer.state[read.parameter]
    assert state["step"].device.type == device and state["exp_avg"].device.type == "meta"
    if device == "cpu":
        assert float(state["step"]) == 1
