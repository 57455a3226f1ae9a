# Read by the launch scripts (`source`), not run: what they all check and set. Its variables can be set in the environment.
#
#   MACHINE           gpu or cpu; found out by itself where it is not given
#   NPROC_PER_NODE    ranks on each machine (default: its GPUs; 1 on a CPU)
#   ACCELERATE_CONFIG a name from configs/accelerate/ or a file (default: ddp; multi_node.sh: multi_node)
#   PYTHON            the interpreter (default: .venv/bin/python of the project where there is one, else python3)

fail() {
  echo "[launch] $*" >&2
  exit 2
}

# The comment at the top of a script is its help.
show_usage() {
  sed -n '2,/^[^#]/{/^#/!q;s/^# \{0,1\}//;p}' "$1"
}

wants_help() {
  [[ $# -eq 0 || $1 == -h || $1 == --help ]]
}

is_whole_number() {
  [[ $1 =~ ^[0-9]+$ ]]
}

# check_recipe RECIPE --config FILE ...: both must be files; sets CONFIG.
check_recipe() {
  [[ $1 != -* ]] || fail "the recipe comes first: recipes/grpo.py --config FILE ... (found $1)"
  [[ -f $1 ]] || fail "there is no recipe $1: one of $(cd "$ROOT" && echo recipes/*.py)"
  shift
  CONFIG=""
  while (($#)); do
    case $1 in
      --config) CONFIG=${2:-} ;;
      --config=*) CONFIG=${1#--config=} ;;
    esac
    shift
  done
  [[ -n $CONFIG ]] || fail "no --config FILE: the recipe needs a YAML file, e.g. --config configs/grpo/demo_arithmetic.yaml"
  [[ -f $CONFIG ]] || fail "there is no config file $CONFIG (looked from $PWD)"
}

# Sets MACHINE, GPUS (an array of device ids, empty on a CPU), PYTHON, and what ranks on a CPU need.
find_machine() {
  if [[ -z ${PYTHON:-} ]]; then
    PYTHON=python3
    [[ ! -x $ROOT/.venv/bin/python ]] || PYTHON=$ROOT/.venv/bin/python
  fi
  command -v "$PYTHON" >/dev/null || fail "there is no Python at $PYTHON: run make setup, or set PYTHON"
  GPUS=()
  if [[ ${MACHINE:-gpu} == gpu && -n ${CUDA_VISIBLE_DEVICES:-} ]]; then
    IFS=, read -ra GPUS <<<"$CUDA_VISIBLE_DEVICES"
  elif [[ ${MACHINE:-gpu} == gpu && -z ${CUDA_VISIBLE_DEVICES+set} ]] && command -v nvidia-smi >/dev/null; then
    mapfile -t GPUS < <(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null)
  fi
  if [[ -z ${MACHINE:-} ]]; then
    MACHINE=cpu
    ((${#GPUS[@]} == 0)) || MACHINE=gpu
  fi
  case $MACHINE in
    gpu) ((${#GPUS[@]})) || fail "MACHINE=gpu, but nvidia-smi lists no GPU here: set MACHINE=cpu" ;;
    cpu)
      export CUDA_VISIBLE_DEVICES=""
      # threads that spin stop a shared machine; blocks returned to the kernel cost a fifth of a step (see Makefile)
      export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE} GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-0}
      export MALLOC_MMAP_THRESHOLD_=${MALLOC_MMAP_THRESHOLD_:-8589934592}
      export MALLOC_TRIM_THRESHOLD_=${MALLOC_TRIM_THRESHOLD_:-17179869184}
      export MALLOC_TOP_PAD_=${MALLOC_TOP_PAD_:-268435456}
      ;;
    *) fail "MACHINE is gpu or cpu, not $MACHINE" ;;
  esac
  export TOKENIZERS_PARALLELISM=${TOKENIZERS_PARALLELISM:-false} PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH}
}

# Sets NPROC_PER_NODE where it is not given, and the threads of a rank on a CPU.
find_ranks() {
  NPROC_PER_NODE=${NPROC_PER_NODE:-$((${#GPUS[@]} ? ${#GPUS[@]} : 1))}
  is_whole_number "$NPROC_PER_NODE" && ((NPROC_PER_NODE >= 1)) ||
    fail "NPROC_PER_NODE is the number of ranks on a machine, not $NPROC_PER_NODE"
  if [[ $MACHINE == gpu ]]; then
    ((NPROC_PER_NODE <= ${#GPUS[@]})) ||
      fail "NPROC_PER_NODE=$NPROC_PER_NODE, but this machine has ${#GPUS[@]} GPUs (${GPUS[*]})"
  else
    local threads=$(($(nproc) / NPROC_PER_NODE))
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 1 ? threads : 1))}
  fi
}

# Makes a file of the name in ACCELERATE_CONFIG.
find_accelerate_config() {
  local folder=$ROOT/configs/accelerate name=$ACCELERATE_CONFIG
  [[ -f $name ]] || ACCELERATE_CONFIG=$folder/$name.yaml
  [[ -f $ACCELERATE_CONFIG ]] ||
    fail "there is no Accelerate config $name: a file, or one of$(printf ' %s' "$folder"/*.yaml | sed "s#$folder/##g; s/\.yaml//g")"
  # Accelerate does not notice by itself that ranks are CPU processes and would start as many runs of one rank each.
  # DeepSpeed finds the CPU alone, and is not seen by Accelerate where this is set.
  if [[ $MACHINE == cpu ]] && ! grep -q '^distributed_type: *DEEPSPEED' "$ACCELERATE_CONFIG"; then
    export ACCELERATE_USE_CPU=true
  fi
}

# run_ranks NODES NODE_RANK ADDRESS PORT RECIPE ...: this machine's ranks take the place of the script.
run_ranks() {
  local nodes=$1 node_rank=$2 address=$3 port=$4
  shift 4
  # compared by rlhf/training/launch_checks.py with the number of ranks that found each other
  export RLHF_RANKS=$((nodes * NPROC_PER_NODE))
  # ranks that are told to stop end their step and write a checkpoint; the launcher would kill them after 30 seconds
  export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-120}
  local command=("$PYTHON" -m accelerate.commands.launch --config_file "$ACCELERATE_CONFIG" --num_machines "$nodes"
    --machine_rank "$node_rank" --num_processes "$RLHF_RANKS" --main_process_port "$port")
  if ((nodes > 1)); then
    # `standard`: each machine starts its own ranks; without it DeepSpeed goes to the others by ssh
    command+=(--main_process_ip "$address" --same_network --rdzv_backend static --deepspeed_multinode_launcher standard)
  fi
  command+=("$@")
  echo "[launch] $MACHINE, $RLHF_RANKS rank(s), machine $((node_rank + 1)) of $nodes: ${command[*]}"
  exec "${command[@]}"
}

# wait_for_end PID: ends the script as this child ends, also where a signal that is passed on breaks the wait.
wait_for_end() {
  local status=0
  wait "$1" || status=$?
  while kill -0 "$1" 2>/dev/null; do
    status=0
    wait "$1" || status=$?
  done
  exit "$status"
}
