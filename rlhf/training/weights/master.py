"""Float32 master weights behind a model that computes in lower precision, whole on every rank, and their optimizer.

A learning rate of 1e-6 changes a bfloat16 weight only when the change exceeds 1/256 of it, which is never; and
gradients of
several micro-batches summed in bfloat16 lose their small terms. So the optimizer owns float32 copies, gradients are
summed
into them, and the policy's weights are rounded from them after each step.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from rlhf.training.collectives import sum_gradients

BuildOptimizer = Callable[[Mapping[str, nn.Parameter]], torch.optim.Optimizer]
"""From master weights by name to their optimizer."""


def clip_factor(norm: float, max_norm: float) -> float:
    """What gradients of this norm are multiplied by so that it is at most `max_norm`; 1 where it is."""
    return min(1.0, max_norm / (norm + 1e-6))


class MasterWeights:
    """Pairs each trainable parameter with a float32 master; where the parameter is float32 it is its own master.

    With `copies` False every parameter is its own master: an optimizer that rounds stochastically, or keeps a weight's
    lost bits, needs no copies. Gradients of several micro-batches are then summed in the parameter's precision.

    All methods that say so are collective over ranks. `module`: what training calls forward on.
    """

    is_sharded = False
    """Forward and backward passes are collective: every rank runs as many."""

    def __init__(
        self, module: nn.Module, named_parameters: dict[str, nn.Parameter], build: BuildOptimizer, copies: bool = True
    ) -> None:
        self.module, self.build = module, build
        self.names = list(named_parameters)
        self.parameters = list(named_parameters.values())
        self.masters = [
            nn.Parameter(parameter.detach().float()) if copies and parameter.dtype.itemsize < 4 else parameter
            for parameter in self.parameters
        ]

        self.new_optimizer()

    def new_optimizer(self) -> None:
        """Forget the optimizer's state."""
        self.optimizer = self.build(dict(zip(self.names, self.masters, strict=True)))

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """Add the gradients of one micro-batch; `is_last`: of the optimizer step."""
        loss.backward()
        self.collect_gradients()

    @torch.no_grad()
    def collect_gradients(self) -> None:
        """Add the parameters' gradients to the masters' and free them."""
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            if parameter is master or parameter.grad is None:
                continue
            if master.grad is None:
                master.grad = parameter.grad.float()
            else:
                master.grad.add_(parameter.grad)
            parameter.grad = None

    def zero_gradients(self) -> None:
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            parameter.grad = None
            master.grad = None

    def reduce_gradients(self) -> None:
        """Call when all micro-batches are done. Collective: gradients are then those of all ranks' samples. A batch
        without a signal has a zero gradient, not none: the optimizer's moments decay either way."""
        self.fill_missing_gradients()
        sum_gradients(self.masters)

    @torch.no_grad()
    def fill_missing_gradients(self) -> None:
        for master in self.masters:
            if master.grad is None:
                master.grad = torch.zeros_like(master)

    def gradients(self) -> list[Tensor]:
        """What this rank holds of them."""
        return [master.grad for master in self.masters if master.grad is not None]

    def gradient_norm(self) -> float:
        """Of all gradients together. Collective."""
        return float(nn.utils.get_total_norm(self.gradients()))

    @torch.no_grad()
    def scale_gradients(self, factor: float) -> None:
        if factor != 1:
            torch._foreach_mul_(self.gradients(), factor)

    def has_finite_gradients(self) -> bool:
        """Of those on this rank."""
        return all(bool(gradient.isfinite().all()) for gradient in self.gradients())

    def step(self) -> None:
        """One optimizer step, and the model's weights follow. Collective."""
        self.optimizer.step()
        self.publish()
        self.zero_gradients()

    @torch.no_grad()
    def publish(self) -> None:
        """Round the masters into the model's weights."""
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            if parameter is not master:
                parameter.copy_(master)

    def non_finite_names(self) -> list[str]:
        """Weights with a NaN or an infinity, on this rank."""
        pairs = zip(self.names, self.masters, strict=True)
        return [name for name, master in pairs if not bool(master.isfinite().all())]

    @torch.no_grad()
    def overwrite(self, values: Mapping[str, Tensor]) -> None:
        """Masters by name become these whole tensors; others stay. Collective: every rank gives the same names."""
        for name, master in zip(self.names, self.masters, strict=True):
            if name in values:
                master.copy_(values[name])
        self.publish()

    def whole(self, parameters: Mapping[str, nn.Parameter]) -> Mapping[str, Tensor]:
        """Parameters of the module by name, each in one piece. Collective where it is sharded: look them up in the same
        order on every rank."""
        return parameters

    def state_dict(self) -> dict[str, Tensor]:
        """Masters by parameter name."""
        return {name: master.detach() for name, master in zip(self.names, self.masters, strict=True)}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Raises ValueError naming what is missing, unexpected or of another shape."""
        missing, unexpected = set(self.names) - set(state), set(state) - set(self.names)
        if missing or unexpected:
            raise ValueError(
                f"weights do not fit the policy: missing {sorted(missing)[:5]}, unexpected {sorted(unexpected)[:5]}"
            )
        for name, master in zip(self.names, self.masters, strict=True):
            if state[name].shape != master.shape:
                raise ValueError(f"weight {name}: saved {tuple(state[name].shape)}, policy has {tuple(master.shape)}")
            master.copy_(state[name])
        self.publish()
