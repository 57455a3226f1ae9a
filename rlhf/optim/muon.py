"""torch's Muon for hidden matrices and torch's AdamW for everything else, as one optimizer."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.optim import AdamW, Muon, Optimizer


class MatrixMomentum(Optimizer):
    """Groups of role "matrix" are updated by Muon (kellerjordan.github.io/posts/muon), scaled to the size of AdamW's
    steps, groups of role "full" by AdamW. Its name is not Muon's: DeepSpeed treats optimizers by that name in ways of
    its own."""

    def __init__(
        self, params: Sequence[dict[str, Any]], lr: float = 1e-3, momentum: float = 0.95, weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.95),
    ) -> None:  # fmt: skip
        matrices = [group for group in params if group["role"] == "matrix"]
        rest = [group for group in params if group["role"] != "matrix"]
        settings = {"lr": lr, "weight_decay": weight_decay}
        self.parts: list[Optimizer] = []
        if matrices:
            self.parts.append(Muon(matrices, momentum=momentum, adjust_lr_fn="match_rms_adamw", **settings))
        if rest:
            self.parts.append(AdamW(rest, betas=betas, **settings))
        # the parts' own groups, so that a scheduler that changes one changes what is used
        super().__init__([group for part in self.parts for group in part.param_groups], settings)
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]
