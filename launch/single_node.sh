#!/usr/bin/env bash
# One machine, all its GPUs (or CPU processes).
#
#   launch/single_node.sh recipes/grpo.py --config my.yaml [--section.key value ...]
#   ACCELERATE_CONFIG=fsdp2 launch/single_node.sh recipes/grpo.py --config my.yaml
#   MACHINE=cpu NPROC_PER_NODE=2 launch/single_node.sh recipes/grpo.py --config my.yaml
#
# What follows the recipe goes to it as it stands. Variables, with their defaults:
#   MACHINE=            gpu or cpu; gpu where nvidia-smi lists one
#   NPROC_PER_NODE=     ranks; as many as there are GPUs, 1 on a CPU
#   ACCELERATE_CONFIG=  ddp; a name from configs/accelerate/ (ddp fsdp2 zero1 zero2 zero3 zero3_offload) or a file
#   MASTER_PORT=        0; a free port for the ranks to meet
#   PYTHON=             .venv/bin/python of the project where there is one, else python3

set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$ROOT/launch/common.sh"

if wants_help "$@"; then show_usage "${BASH_SOURCE[0]}"; exit 0; fi
ACCELERATE_CONFIG=${ACCELERATE_CONFIG:-ddp}
check_recipe "$@"
find_machine
find_ranks
find_accelerate_config
run_ranks 1 0 127.0.0.1 "${MASTER_PORT:-0}" "$@"
