"""vLLM's tensors under their Hugging Face names: written in place, and read back as the engine computes with them."""

from collections.abc import Iterable, Iterator

import torch


def tensors_by_hf_name(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """(HF parameter name, tensor) of a vLLM model, fused projections split into parts, vocabulary padding cut off.

    vLLM stores q, k, v (and gate, up) as one matrix; the model's `packed_modules_mapping` names the parts and the
    layer's `output_sizes` their rows. A tied LM head appears under its own name too, as the tensor that the head really
    multiplies by.
    """
    parts_of = getattr(model, "packed_modules_mapping", {})
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, parameter in model.named_parameters(remove_duplicate=False):
        path, _, leaf = name.rpartition(".")
        parent, _, last = path.rpartition(".")
        module = modules[path]
        tensor = parameter.data
        parts = parts_of.get(last, [last])
        if len(parts) > 1:
            for part, rows in zip(parts, tensor.split(module.output_sizes), strict=True):
                yield f"{parent}.{part}.{leaf}", rows
        elif hasattr(module, "org_vocab_size"):
            yield name, tensor[: module.org_vocab_size]
        else:
            yield name, tensor


def load_in_place(model: torch.nn.Module, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Overwrite every parameter of a vLLM model by (HF parameter name, tensor) pairs of any float dtype and device.

    Raises KeyError where parameters were left out (vLLM itself raises for names and shapes that it does not know).
    """
    # a tied tensor is written once, under the first of its names
    first_name = {id(parameter): name for name, parameter in model.named_parameters()}
    aliases = {
        name for name, parameter in model.named_parameters(remove_duplicate=False) if first_name[id(parameter)] != name
    }
    # detached: vLLM's loader writes attributes on the tensors that it is given
    loaded = model.load_weights((name, tensor.detach()) for name, tensor in weights if name not in aliases)
    missing = sorted(set(first_name.values()) - set(loaded))
    if missing:
        raise KeyError(
            f"{len(missing)} of vLLM's parameters were not given, e.g. {missing[:3]}: "
            "all weights must be replaced together"
        )
