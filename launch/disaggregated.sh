#!/usr/bin/env bash
# Completions from vLLM servers on some GPUs or machines, learning on others. No Ray: processes and addresses.
#
# One machine: servers on the last SERVER_COUNT GPUs, ranks on the others (on a CPU: one server and one rank).
#   SERVER_COUNT=2 launch/disaggregated.sh recipes/grpo.py --config my.yaml
#
# Several machines. On each machine for completions, one server a GPU until it is ended:
#   ROLE=servers launch/disaggregated.sh recipes/grpo.py --config my.yaml
# and on the machine that learns (on each of them, with the variables of launch/multi_node.sh):
#   SERVERS="http://gpu-a:8001 http://gpu-a:8002" launch/disaggregated.sh recipes/grpo.py --config my.yaml
#
# What follows the recipe goes to it as it stands, then engine.type and engine.urls. The script waits until all servers
# are well, and ends those that it started, no others. Both sides work at the same time with
#   --batch.staleness 1 --algorithm.mismatch.level token
# Variables, with their defaults:
#   ROLE=               trainer where SERVERS is given, else all; servers
#   SERVERS=            addresses of servers that run already, separated by spaces
#   SERVER_COUNT=       servers to start, one a GPU; ROLE=all: half of the GPUs; ROLE=servers: all of them; 1 on a CPU
#   SERVER_PORT=        8001; of the first server, the others have the next ones
#   SERVER_HOST=        127.0.0.1; ROLE=servers: 0.0.0.0, for a network that you trust (docs/rollout_servers.md)
#   MODEL=              model.path of the config: the checkpoint that the servers start from
#   SERVER_DTYPE=       engine.dtype or model.dtype of the config
#   SERVER_OPTIONS=     more for launch/rollout_server.py, e.g. "--max-model-len 4096 --cuda-graphs"
#   SERVER_LOGS=        runs/servers; a log for each server, by port
#   SERVER_TIMEOUT_S=   900; how long servers may take to be well
#   ACCELERATE_CONFIG=, NPROC_PER_NODE=, MACHINE=, PYTHON=   as in launch/single_node.sh; NNODES= and so on as in
#                       launch/multi_node.sh

set -euo pipefail
set +m  # job control (bash -m) would give children process groups of their own, see start_servers
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$ROOT/launch/common.sh"

if wants_help "$@"; then show_usage "${BASH_SOURCE[0]}"; exit 0; fi
SERVERS=${SERVERS:-}
ROLE=${ROLE:-$([[ -n $SERVERS ]] && echo trainer || echo all)}
SERVER_PORT=${SERVER_PORT:-8001}
SERVER_LOGS=${SERVER_LOGS:-runs/servers}
SERVER_TIMEOUT_S=${SERVER_TIMEOUT_S:-900}
NNODES=${NNODES:-1}
case $ROLE in
  all)
    [[ -z $SERVERS ]] || fail "ROLE=all starts servers, and SERVERS names some that run: leave one of them out"
    ((NNODES == 1)) || fail "ROLE=all is for one machine: with NNODES=$NNODES start the servers apart (ROLE=servers)"
    ;;
  servers) [[ -z $SERVERS ]] || fail "ROLE=servers starts servers, and SERVERS names some that run" ;;
  trainer) [[ -n $SERVERS ]] || fail "no servers: set SERVERS to their addresses, e.g. \"http://gpu-a:8001\"" ;;
  *) fail "ROLE is all, servers or trainer, not $ROLE" ;;
esac
for url in $SERVERS; do
  [[ $url =~ ^http://[^/:]+:[0-9]+$ ]] || fail "$url is no address of a server: write http://HOST:PORT"
done
is_whole_number "$SERVER_PORT" || fail "SERVER_PORT is a port, not $SERVER_PORT"
check_recipe "$@"
find_machine

server_pids=() waiter_pid="" watcher_pid="" trainer_pid=""
# Ends what this script started; a server that has ended already is no error.
end_servers() {
  local pid tenths
  for pid in $watcher_pid $waiter_pid "${server_pids[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
  for pid in "${server_pids[@]}"; do
    # one that hangs must not keep a machine
    for ((tenths = 0; tenths < 300; tenths++)); do kill -0 "$pid" 2>/dev/null && sleep 0.1 || break; done
    kill -KILL "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
  done
}
# The ranks end their step, write a checkpoint, and then the script ends as they did.
pass_on() {
  if [[ -n $trainer_pid ]]; then kill -TERM "$trainer_pid" 2>/dev/null || true; else exit 143; fi
}
# Says at once what the trainer finds out by waiting engine.retry_for_s.
watch_servers() {
  trap - EXIT TERM
  trap '' INT
  local pid ended=" "
  while sleep 1; do
    for pid in "${server_pids[@]}"; do
      if [[ $ended != *" $pid "* ]] && ! kill -0 "$pid" 2>/dev/null; then
        ended+="$pid "
        echo "[launch] a server ended (its log is in $SERVER_LOGS): started again on its port it gets its weights back" >&2
      fi
    done
  done
}
trap end_servers EXIT
trap pass_on INT TERM

# setting SECTION.KEY: of the config file, empty where it is not there or "auto".
setting() {
  "$PYTHON" - "$CONFIG" "$1" <<'PYTHON_END'
import sys
import yaml
value = yaml.safe_load(open(sys.argv[1], encoding="utf-8")) or {}
for key in sys.argv[2].split("."):
    value = (value.get(key) or {}) if isinstance(value, dict) else {}
print("" if value in ({}, "auto") else value)
PYTHON_END
}

start_servers() {
  local count=${SERVER_COUNT:-} number port devices=()
  if [[ $MACHINE == cpu ]]; then
    count=${count:-1}
  else
    [[ $ROLE == servers ]] && count=${count:-${#GPUS[@]}} || count=${count:-$((${#GPUS[@]} / 2))}
  fi
  is_whole_number "$count" && ((count >= 1)) || fail "SERVER_COUNT is at least 1, not $count: there are ${#GPUS[@]} GPUs"
  if [[ $MACHINE == gpu ]]; then
    local left=$((${#GPUS[@]} - count))
    if ((left < 0)) || [[ $ROLE == all && $left == 0 ]]; then
      fail "$count servers on ${#GPUS[@]} GPUs leave none to learn on"
    fi
    devices=("${GPUS[@]:left}")
    GPUS=("${GPUS[@]:0:left}")
  fi
  MODEL=${MODEL:-$(setting model.path)}
  [[ -n $MODEL ]] || fail "$CONFIG has no model.path: set MODEL to the checkpoint that the servers start from"
  SERVER_DTYPE=${SERVER_DTYPE:-$(setting engine.dtype)}
  SERVER_DTYPE=${SERVER_DTYPE:-$(setting model.dtype)}
  local host=${SERVER_HOST:-$([[ $ROLE == servers ]] && echo 0.0.0.0 || echo 127.0.0.1)}
  mkdir -p "$SERVER_LOGS"
  for ((number = 0; number < count; number++)); do
    port=$((SERVER_PORT + number))
    local command=("$PYTHON" "$ROOT/launch/rollout_server.py" --model "$MODEL" --host "$host" --port "$port"
      --dtype "${SERVER_DTYPE:-bfloat16}")
    # shellcheck disable=SC2206  # several words are meant
    command+=(${SERVER_OPTIONS:-})
    echo "[launch] server on ${devices[number]:-the CPU}, log $SERVER_LOGS/$port.log: ${command[*]}"
    # in a session of its own: Ctrl-C in a terminal goes to the whole process group, vLLM answers it even where the shell
    # has it ignored, and the ranks need their servers to end their step. Without job control setsid takes the place of
    # the child, so its pid is the server's
    CUDA_VISIBLE_DEVICES=${devices[number]:-} setsid "${command[@]}" >"$SERVER_LOGS/$port.log" 2>&1 &
    server_pids+=($!)
    SERVERS+=" http://127.0.0.1:$port"
  done
}

[[ $ROLE == trainer ]] || start_servers
# in the background, so that a signal is answered while it waits
"$PYTHON" "$ROOT/launch/wait_for_servers.py" --timeout-s "$SERVER_TIMEOUT_S" --pids "${server_pids[@]}" -- $SERVERS &
waiter_pid=$!
wait "$waiter_pid" || fail "not all servers are well${server_pids[0]:+: their logs are in $SERVER_LOGS}"
waiter_pid=""

if [[ $ROLE == servers ]]; then
  echo "[launch] ${#server_pids[@]} server(s) on $(hostname) until this ends"
  # one that ends ends the others: start the script again to have all of them
  wait -n "${server_pids[@]}" || fail "a server ended: its log is in $SERVER_LOGS"
  exit 0
fi

if [[ $MACHINE == gpu ]]; then
  CUDA_VISIBLE_DEVICES=$(IFS=,; echo "${GPUS[*]}")
  export CUDA_VISIBLE_DEVICES
fi
# the words of $SERVERS as a YAML list
urls="[$(echo $SERVERS | tr ' ' ',')]"
script=single_node.sh
((NNODES == 1)) || script=multi_node.sh
export MACHINE PYTHON
"$ROOT/launch/$script" "$@" --engine.type server --engine.urls "$urls" &
trainer_pid=$!
if ((${#server_pids[@]})); then watch_servers & watcher_pid=$!; fi
wait_for_end "$trainer_pid"
