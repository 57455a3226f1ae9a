"""Start a rollout server: vLLM's own OpenAI-style server, which also takes new weights and proves that it has them.

    python launch/rollout_server.py --model Qwen/Qwen2.5-0.5B-Instruct --port 8001
    python recipes/grpo.py --config my.yaml --engine.type server --engine.urls [http://127.0.0.1:8001]

Trainers may come and go while a server runs: each pushes its weights when it starts. A server that ended may be
started again with the same command: the trainer notices, pushes the weights again and repeats what was lost.
Whoever reaches the port may replace the weights and make the server read safetensors files: keep it on this machine
or in a network that you trust. docs/rollout_servers.md says more.
"""

import argparse
import os

from rlhf.models.embedded import resolve_model_path
from rlhf.rollouts.serving.command import ServerSettings, is_vllm_for_cpu, server_command, server_environment


def parse(arguments: list[str] | None = None) -> ServerSettings:
    """The command line; what follows `--` goes to vLLM."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="what follows -- goes to vLLM's server as it stands, e.g. -- --uvicorn-log-level warning",
    )  # fmt: skip
    add = parser.add_argument
    add("--model", required=True, help="the checkpoint that training starts from: folder, hub id or embedded:NAME")
    add("--port", type=int, default=8001, help="one for each server of a machine (default: 8001)")
    add("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in (default: this machine only)")
    add("--dtype", default="bfloat16", choices=["float32", "bfloat16"],
        help="must be the trainer's engine.dtype (default: bfloat16)")  # fmt: skip
    add("--max-model-len", type=int, default=2048, help="longest prompt plus completion in tokens (default: 2048)")
    add("--max-num-seqs", type=int, default=128, help="completions decoded at once (default: 128)")
    add("--gpu-memory-utilization", type=float, default=0.9,
        help="share of the GPU for weights and cache (default: 0.9; lower if the trainer is on it too)")  # fmt: skip
    add("--cpu-kv-cache-gib", type=float, default=1.0, help="key-value cache on CPU in GiB (default: 1)")
    add("--cuda-graphs", action="store_true", help="capture CUDA graphs: starts slower, decodes faster")
    add("extra", nargs="*", metavar="-- VLLM_OPTION", help=argparse.SUPPRESS)
    options = vars(parser.parse_args(arguments))
    options["enforce_eager"] = not options.pop("cuda_graphs")
    options["extra"] = tuple(options["extra"])
    return ServerSettings(**options | {"model": resolve_model_path(options["model"])})


def main() -> None:
    settings, is_cpu = parse(), is_vllm_for_cpu()
    command = server_command(settings, is_cpu)
    print(f"[rollout server] {' '.join(command)}", flush=True)
    # the server takes this process's place, so that signals to it reach the server
    os.execve(command[0], command, server_environment(settings, is_cpu))


if __name__ == "__main__":
    main()
