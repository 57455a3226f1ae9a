"""A real rollout server in a process of its own, on the CPU."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from rlhf.rollouts.server_client import RolloutServer, ServerFault
from tests.processes import ROOT

START_TIMEOUT_S = 400


def free_port() -> int:
    """A port on which nothing listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_server(model: str, port: int, log_file: Path, **options: str) -> subprocess.Popen:
    """launch/rollout_server.py in float32; what it prints is appended to `log_file`. Returns before it is ready."""
    arguments = {"max-model-len": "256", "cpu-kv-cache-gib": "0.5", "dtype": "float32", **options}
    command = [sys.executable, str(ROOT / "launch" / "rollout_server.py"), "--model", model, "--port", str(port)]
    command += [part for name, value in arguments.items() for part in (f"--{name}", value)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with log_file.open("ab") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)


def wait_until_well(process: subprocess.Popen, port: int, log_file: Path) -> None:
    """Return when the server answers; fails with its log where it ends or takes too long."""
    server = RolloutServer(f"http://127.0.0.1:{port}", push_timeout_s=60, probe_timeout_s=10)
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        assert process.poll() is None and time.monotonic() < deadline, log_file.read_text()[-5000:]
        try:
            server.check_health()
            return
        except ServerFault:
            time.sleep(0.3)


def stop(process: subprocess.Popen) -> None:
    """Kill the server at once; its engine process ends with it."""
    process.kill()
    process.wait(timeout=20)
