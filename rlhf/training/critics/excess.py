"""The papers' rule: how much worse the frozen critic fits unseen episodes than the best critic could, and the training
that brings the learning one into the confidence set."""

import copy
from collections.abc import Callable

import torch
from torch import nn

from rlhf.training.collectives import sum_gradients, sum_numbers
from rlhf.training.critics.forms import CriticForm, Predictions
from rlhf.training.critics.transitions import Transitions


def excess(
    form: CriticForm,
    frozen: Callable[[Transitions], Predictions],
    online: nn.Module,
    *,
    train: Callable[[int], Transitions | None],
    held_out: Transitions | None,
    reward_of: Callable[[Transitions], torch.Tensor],
    actions: int,
    steps: int,
    lr: float,
    device: torch.device,
) -> float:
    """N (mean loss of the frozen critic - mean loss of a refitted one) on held-out episodes, in squared value units.

    `frozen`: optimistic values of the critic in question, as one member. The refitted critic is a copy of `online`
    that learns `steps` times the targets that the frozen one makes, from the batch of `train` for each step.
    `reward_of`: (A, 1). `actions`: N, of everything kept on all ranks. Collective; ranks without episodes give None.
    """
    refitted = copy.deepcopy(online)
    optimizer = torch.optim.AdamW(refitted.parameters(), lr=lr, weight_decay=0.0)
    for step in range(steps):
        batch = train(step)
        optimizer.zero_grad(set_to_none=True)
        count = sum_numbers({"n": 0.0 if batch is None else float(len(batch.view.state_A))}, device)["n"]
        if batch is not None:
            own = form.predict(refitted, batch)
            (form.losses(own, frozen(batch), batch, reward_of(batch)).mean(1).sum() / count).backward()
        sum_gradients(list(refitted.parameters()))
        optimizer.step()
    sums = {"frozen": 0.0, "refitted": 0.0, "actions": 0.0}
    if held_out is not None:
        with torch.no_grad():
            guide, own = frozen(held_out), form.predict(refitted, held_out)
            mean = Predictions(*(None if part is None else part.mean(1, keepdim=True) for part in own))
            reward_A1 = reward_of(held_out)
            sums = {
                "frozen": float(form.losses(guide, guide, held_out, reward_A1).sum()),
                "refitted": float(form.losses(mean, guide, held_out, reward_A1).sum()),
                "actions": float(len(held_out.view.state_A)),
            }
    total = sum_numbers(sums, device)
    if not total["actions"]:
        return 0.0
    return actions * (total["frozen"] - total["refitted"]) / total["actions"]
