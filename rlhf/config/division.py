"""Over how many ranks a model is divided, and how: of a launch, or of one that is planned (`--dry-run zero3:8`)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import get_args

from rlhf.config.optimizer_memory import TrainedTensor
from rlhf.config.sharding import Sharding, sharding_from_environment
from rlhf.config.sources import ConfigError

METHODS: tuple[Sharding, ...] = get_args(Sharding)


@dataclass(frozen=True)
class Division:
    """How the ranks of a run share a model. One rank has all of it, whatever the method."""

    method: Sharding = "ddp"
    ranks: int = 1
    keeps_gathered: bool = False
    """FSDP2 only (`fsdp_reshard_after_forward: false`): weights stay whole from the forward to the backward pass."""
    is_on_host: bool = False
    """FSDP2 only (`fsdp_offload_params: true`): shards, their gradients and optimizer state lie in host memory."""

    @property
    def sharding(self) -> Sharding:
        return "ddp" if self.ranks == 1 else self.method

    def __str__(self) -> str:
        if self.ranks == 1:
            return "1 rank"
        details = [
            text
            for is_so, text in ((self.keeps_gathered, "no resharding"), (self.is_on_host, "on the host"))
            if is_so and self.method == "fsdp2"
        ]
        return f"{self.ranks} ranks, {self.method}" + (f" ({', '.join(details)})" if details else "")

    def elements(self, tensors: Iterable[TrainedTensor], method: Sharding | None = None) -> int:
        """Of these tensors, those in this rank's share; padding included, as on the fullest rank."""
        return sum(tensor.count * self.elements_of(tensor, method) for tensor in tensors)

    def elements_of(self, tensor: TrainedTensor, method: Sharding | None = None) -> int:
        """Of one of them: rows under FSDP2, and under ZeRO-3 a stretch of the flattened tensor. (Stages 1 and 2
        flatten all tensors together: what falls on a rank is known on the whole only.)"""
        method = method or self.sharding
        if method == "ddp":
            return tensor.numel
        if method == "fsdp2":
            rows, width = (tensor.columns, 1) if tensor.rows == 1 else (tensor.rows, tensor.columns)
            return -(-rows // self.ranks) * width
        return -(-tensor.numel // self.ranks)


def division_from_environment(environment: Mapping[str, str]) -> Division:
    """Of the launch that set these variables (`accelerate launch --config_file configs/accelerate/...`)."""
    return Division(
        sharding_from_environment(environment),
        int(environment.get("WORLD_SIZE", "1")),
        environment.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() not in ("true", "full_shard"),
        environment.get("FSDP_OFFLOAD_PARAMS", "false") == "true",
    )


def division_from_text(text: str) -> Division:
    """Of `METHOD:RANKS`, e.g. `zero3:8`. Raises ConfigError for anything else, with the methods."""
    method, _, ranks = text.partition(":")
    if method not in METHODS:
        raise ConfigError([f"--dry-run {text}: no method {method!r}; plan for one of {', '.join(METHODS)}"])
    if not ranks.isdigit() or int(ranks) < 1:
        raise ConfigError([f"--dry-run {text}: how many ranks? Write e.g. {method}:8"])
    if method != "ddp" and int(ranks) == 1:
        raise ConfigError([f"--dry-run {text}: {method} divides a model over ranks; plan for 2 or more, or for ddp:1"])
    return Division(method, int(ranks))
