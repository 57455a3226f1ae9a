"""The part of a rollout server that holds the model: vLLM's worker, with weights read from files and checksums.

Only vLLM imports this module (`--worker-cls`), in the server's engine process. Its methods answer `/collective_rpc`.
"""

import ctypes
import signal
import sys
from pathlib import Path
from typing import Any

from vllm.platforms import current_platform

from rlhf.rollouts.serving.weight_files import read_weight_files
from rlhf.rollouts.vllm_cpu import adapt_vllm_to_cpu, import_vllm, packed_layers
from rlhf.rollouts.vllm_weights import load_in_place, tensors_by_hf_name
from rlhf.rollouts.weights import tensor_checksum

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as PlatformWorker
else:
    from vllm.v1.worker.gpu_worker import Worker as PlatformWorker


class RolloutWorker(PlatformWorker):
    """vLLM's worker for this platform, adapted as the engine in the trainer's process is (vllm_cpu.py)."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        end_with_parent()
        import_vllm()
        if current_platform.is_cpu():
            adapt_vllm_to_cpu()
        super().__init__(*arguments, **named)

    def describe_rollout_engine(self) -> dict[str, Any]:
        """What a trainer must agree with before it uses this server."""
        return {
            "dtype": str(self.model_config.dtype).removeprefix("torch."),
            "max_model_len": self.model_config.max_model_len,
            "world_size": self.parallel_config.world_size,
        }

    def load_weight_files(self, folder: str, names: list[str]) -> None:
        """Replace all weights by the tensors of safetensors files, which are mapped, not read into memory.

        Raises FileNotFoundError where this process does not see the folder, KeyError where parameters are missing.
        """
        load_in_place(self.get_model(), read_weight_files(Path(folder), names))

    def weight_checksums_by_hf_name(self) -> dict[str, str]:
        """Checksums of the tensors that the model computes with; RuntimeError where a layer uses a repacked copy."""
        packed = packed_layers(self.get_model())
        if packed:
            raise RuntimeError(
                f"vLLM repacked {len(packed)} layers, e.g. {packed[:3]}: weight updates would not reach them"
            )
        return {name: tensor_checksum(tensor) for name, tensor in tensors_by_hf_name(self.get_model())}


def end_with_parent() -> None:
    """On Linux, let the kernel end this process when the one that started it ends, even by SIGKILL.

    vLLM's engine process outlives a killed server otherwise, and keeps its memory and cores.
    """
    if sys.platform == "linux":
        set_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL, 0, 0, 0)
