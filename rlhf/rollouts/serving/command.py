"""The command and the environment with which vLLM's own server becomes a rollout server."""

import importlib.metadata
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from rlhf.config.extras import from_checkout
from rlhf.rollouts.serving.uploads import FOLDER_VARIABLE

# a server for rollouts and one for chats differ in these; read by vLLM when it is imported
ENVIRONMENT = {
    "VLLM_SERVER_DEV_MODE": "1",  # the endpoints for weights, versions, pauses and checksums
    "VLLM_NO_USAGE_STATS": "1",
}
CPU_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # on CPU: the worker in the engine's process, not in one more
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # vLLM would pin the server to a part of the cores
    "OMP_NUM_THREADS": "1",  # a second thread that spins stops the trainer beside it; set it for a machine of its own
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0",
}


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What a rollout server is started with; `extra` goes to vLLM as it stands."""

    model: str
    host: str = "127.0.0.1"
    port: int = 8001
    dtype: str = "bfloat16"
    max_model_len: int = 2048
    max_num_seqs: int = 128
    gpu_memory_utilization: float = 0.9
    cpu_kv_cache_gib: float = 1.0
    enforce_eager: bool = True
    seed: int = 0
    extra: tuple[str, ...] = field(default=())


def is_vllm_for_cpu() -> bool:
    """Whether the installed vLLM computes on the CPU, by its package; importing it would take seconds."""
    try:
        importlib.metadata.version("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        try:
            return "cpu" in importlib.metadata.version("vllm")
        except importlib.metadata.PackageNotFoundError as error:
            raise ModuleNotFoundError(
                f"a rollout server needs vLLM: {from_checkout('vllm')} on CUDA, '.[vllm-cpu]' on CPU"
            ) from error
    return True


def server_command(settings: ServerSettings, is_cpu: bool) -> list[str]:
    """vLLM's server, with the settings that the engine in the trainer's process has too (vllm_engine.py)."""
    from rlhf.rollouts.vllm_sampling import CPU_BLOCK_SIZE, MAX_BATCHED_TOKENS

    # `vllm serve` does the same but imports what vllm-cpu lacks
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", settings.model]
    command += ["--host", settings.host, "--port", str(settings.port), "--dtype", settings.dtype]
    command += ["--max-model-len", str(settings.max_model_len), "--max-num-seqs", str(settings.max_num_seqs)]
    command += ["--max-num-batched-tokens", str(max(settings.max_model_len, MAX_BATCHED_TOKENS))]
    command += ["--seed", str(settings.seed), "--worker-cls", "rlhf.rollouts.serving.worker.RolloutWorker"]
    command += ["--middleware", "rlhf.rollouts.serving.uploads.WeightUploads"]
    # a split prompt rewinds the sample's generator by a count of draws, which only CUDA generators have
    command += ["--enable-prefix-caching", "--no-enable-chunked-prefill"]
    # neither default sampling settings nor stop tokens from the checkpoint; log-probs of the distribution drawn from
    command += ["--generation-config", "vllm", "--logprobs-mode", "processed_logprobs"]
    # token ids in, token ids out: nothing is tokenised on the way
    command += ["--enable-scale-out"]
    command += ["--disable-uvicorn-access-log", "--no-enable-log-requests"]
    if settings.enforce_eager:
        command += ["--enforce-eager"]
    if is_cpu:
        command += ["--kv-cache-memory-bytes", str(int(settings.cpu_kv_cache_gib * 2**30))]
        command += ["--block-size", str(CPU_BLOCK_SIZE)]
    else:
        command += ["--gpu-memory-utilization", str(settings.gpu_memory_utilization)]
    return [*command, *settings.extra]


def server_environment(settings: ServerSettings, is_cpu: bool) -> dict[str, str]:
    """This process's environment and what a rollout server needs; what the caller has set on CPU stays."""
    memory = Path("/dev/shm")
    folder = (memory if memory.is_dir() else Path.home() / ".cache") / f"rlhf-uploads-{os.getuid()}-{settings.port}"
    root = str(Path(__file__).parents[3])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    defaults = CPU_ENVIRONMENT if is_cpu else {}
    return {**defaults, **os.environ, **ENVIRONMENT, FOLDER_VARIABLE: str(folder), "PYTHONPATH": path}
