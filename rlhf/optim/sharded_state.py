"""Makes room for the state that a distributed checkpoint holds.

torch.distributed.checkpoint reads into the tensors that an optimizer has. A new one has those of a step with learning
rate 0, and FRUGAL's moments are not among them: which tensors or columns have some depends on the step. So:

    reader = FileSystemReader(folder)
    allocate_saved_state(optimizer, reader.read_metadata())
    state = {"optimizer": get_optimizer_state_dict(model, optimizer)}
    torch.distributed.checkpoint.load(state, storage_reader=reader)
    set_optimizer_state_dict(model, optimizer, state["optimizer"])

Accelerate's `load_state` is the last three lines, so the first two before it are enough there too.
"""

import re

import torch
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from rlhf.optim.base import NOT_SHARDED, FlatOptimizer
from rlhf.optim.layout import local_flat, shaped_like

WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_checkpoint_wrapped_module)\.")
"""Parts of a parameter's name that torch leaves out in checkpoints."""


def allocate_saved_state(optimizer: FlatOptimizer, metadata: Metadata, prefix: str = "optimizer") -> None:
    """Zeros for each state of the optimizer's parameters that the checkpoint has under `prefix`, sharded as the
    parameters are.

    The optimizer's groups need names, as those of `build_param_groups` have. Raises ValueError where they have none,
    and where the checkpoint has no state of a parameter.
    """
    saved = metadata.state_dict_metadata
    for group in optimizer.param_groups:
        if group["params"] and "param_names" not in group:
            raise ValueError("a group has no param_names: give the optimizer pairs of name and parameter")
        for name, parameter in zip(group.get("param_names", ()), group["params"], strict=True):
            start = f"{prefix}.state.{WRAPPERS.sub('', name)}."
            states = {key.removeprefix(start): value for key, value in saved.items() if key.startswith(start)}
            if not states:
                raise ValueError(f"the checkpoint has no {start}*: check the prefix and that the model is the same")
            for state, value in states.items():
                if isinstance(value, TensorStorageMetadata):
                    optimizer.state[parameter][state] = _zeros(state, value, parameter)


def _zeros(name: str, saved: TensorStorageMetadata, parameter: torch.Tensor) -> torch.Tensor:
    size, dtype = tuple(saved.size), saved.properties.dtype
    if not size:
        # counters are kept on the CPU
        return torch.zeros((), dtype=dtype)
    if name in NOT_SHARDED or size[0] != parameter.shape[0]:
        return torch.zeros(size, dtype=dtype, device=parameter.device)
    rows = parameter.shape[0]
    local_rows = local_flat(parameter).numel() // max(parameter.numel() // max(rows, 1), 1)
    width = torch.Size(size[1:]).numel()
    flat = torch.zeros(local_rows * width, dtype=dtype, device=parameter.device)
    return shaped_like(flat, parameter, None if size == tuple(parameter.shape) else width)
