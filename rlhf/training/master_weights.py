"""Float32 master weights behind a policy that computes in lower precision.

A learning rate of 1e-6 changes a bfloat16 weight only when the change exceeds 1/256 of it, which is never; and
gradients of
several micro-batches summed in bfloat16 lose their small terms. So the optimizer owns float32 copies, gradients are
summed
into them, and the policy's weights are rounded from them after each step.
"""

import torch
from torch import Tensor, nn


class MasterWeights:
    """Pairs each trainable parameter with a float32 master; where the parameter is float32 it is its own master.

    With `copies` False every parameter is its own master: an optimizer that rounds stochastically, or keeps a weight's
    lost bits, needs no copies. Gradients of several micro-batches are then summed in the parameter's precision.
    """

    def __init__(self, named_parameters: dict[str, nn.Parameter], copies: bool = True) -> None:
        self.names = list(named_parameters)
        self.parameters = list(named_parameters.values())
        self.masters = [
            nn.Parameter(parameter.detach().float()) if copies and parameter.dtype.itemsize < 4 else parameter
            for parameter in self.parameters
        ]

    @torch.no_grad()
    def collect_gradients(self) -> None:
        """Add the parameters' gradients to the masters' and free them. Call after each backward."""
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

    @torch.no_grad()
    def fill_missing_gradients(self) -> None:
        """A batch without a signal has a zero gradient, not none: the optimizer's moments decay either way."""
        for master in self.masters:
            if master.grad is None:
                master.grad = torch.zeros_like(master)

    @torch.no_grad()
    def publish(self) -> None:
        """Round the masters into the policy's weights. Call after each optimizer step."""
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            if parameter is not master:
                parameter.copy_(master)

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
