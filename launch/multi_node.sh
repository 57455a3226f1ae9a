#!/usr/bin/env bash
# Several machines: the same command on each, with its own NODE_RANK.
#
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 launch/multi_node.sh recipes/grpo.py --config my.yaml     # on 10.0.0.1
#   NNODES=2 NODE_RANK=1 MASTER_ADDR=10.0.0.1 launch/multi_node.sh recipes/grpo.py --config my.yaml     # on the other
#
# What follows the recipe goes to it as it stands. The run's folder, the checkpoint and the data must be seen by all
# machines under the same paths. Variables, with their defaults:
#   NNODES=             machines (required)
#   NODE_RANK=          which one this is, from 0 (required; SLURM_PROCID under srun)
#   MASTER_ADDR=        address of the one with NODE_RANK=0 (required)
#   MASTER_PORT=        29500; a free port there
#   NPROC_PER_NODE=     ranks on each machine, the same on all; as many as there are GPUs, 1 on a CPU
#   ACCELERATE_CONFIG=  multi_node (FSDP2); a name from configs/accelerate/ or a file; its number of machines is not read
#   MACHINE=, PYTHON=   as in launch/single_node.sh

set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$ROOT/launch/common.sh"

if wants_help "$@"; then show_usage "${BASH_SOURCE[0]}"; exit 0; fi
ACCELERATE_CONFIG=${ACCELERATE_CONFIG:-multi_node}
NODE_RANK=${NODE_RANK:-${SLURM_PROCID:-}}
check_recipe "$@"
is_whole_number "${NNODES:-}" && ((NNODES >= 1)) || fail "no nodes: set NNODES to the number of machines"
is_whole_number "$NODE_RANK" && ((NODE_RANK < NNODES)) ||
  fail "NODE_RANK is ${NODE_RANK:-not set}: of $NNODES machines it is 0 to $((NNODES - 1))"
[[ -n ${MASTER_ADDR:-} ]] || fail "set MASTER_ADDR to the address of the machine with NODE_RANK=0"
find_machine
find_ranks
find_accelerate_config
run_ranks "$NNODES" "$NODE_RANK" "$MASTER_ADDR" "${MASTER_PORT:-29500}" "$@"
