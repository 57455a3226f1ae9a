"""Servers beside the ranks that they serve: waited for, told of, and ended by the script. Stand-ins for both."""

import http.server
import os
import signal
import sys
import threading

import pytest

from tests.launch.scripts import DEMO, begin, fake, make_python, output, read_until
from tests.rollout_servers import free_port


class Healthy(http.server.BaseHTTPRequestHandler):
    """Answers a health check as a rollout server does."""

    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *_):
        """Not into the tests' output."""


def test_the_trainer_begins_when_servers_that_run_are_well_and_leaves_them_running(tmp_path):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Healthy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        urls = [f"http://127.0.0.1:{server.server_port}", f"http://localhost:{server.server_port}"]
        text = output(begin("disaggregated.sh", *DEMO, SERVERS=" ".join(urls), PYTHON=make_python(tmp_path)))
        server.shutdown()
    assert "[launch] 2 server(s) well after" in text and "RLHF_RANKS=1\n" in text
    assert f"--engine.type server --engine.urls [{','.join(urls)}]" in text


def test_servers_that_do_not_come_are_named(tmp_path):
    port = free_port()
    text = output(
        begin("disaggregated.sh", *DEMO, SERVERS=f"http://127.0.0.1:{port}", SERVER_TIMEOUT_S="0.1"), status=2
    )
    assert f"http://127.0.0.1:{port} is not well after 0.1 s: no answer" in text


def test_a_server_that_cannot_start_ends_the_script_and_its_log_is_named(tmp_path):
    text = output(begin("disaggregated.sh", *DEMO, SERVER_LOGS=str(tmp_path), SERVER_PORT=str(free_port()),
                        SERVER_OPTIONS="--dtype float8"), status=2)  # fmt: skip
    assert "a server's process ended before it was well" in text and f"their logs are in {tmp_path}" in text
    (log,) = tmp_path.glob("*.log")
    assert "invalid choice: 'float8'" in log.read_text()


# as vLLM's, which takes SIGINT also where the shell that started it had that ignored
SERVER = """import signal, sys
def end(number, frame):
    print(signal.Signals(number).name, flush=True)
    sys.exit()
signal.signal(signal.SIGINT, end)
signal.signal(signal.SIGTERM, end)
print("READY", flush=True)
signal.pause()
"""


@pytest.mark.parametrize("is_ctrl_c", [False, True], ids=["SIGTERM", "Ctrl-C"])
def test_a_signal_reaches_the_ranks_first_and_then_the_servers_are_ended(tmp_path, is_ctrl_c):
    log = tmp_path / "8001.log"
    (tmp_path / "server.py").write_text(SERVER)
    fake(
        tmp_path / "bin",
        "python",
        f'''case "$*" in
*rollout_server.py*) exec {sys.executable} "{tmp_path}"/server.py ;;
*wait_for_servers.py*) until grep -q READY "{log}"; do sleep 0.1; done ;;
*accelerate*) sleep 60 &
  trap 'echo SAVED; kill $!; sleep 1; cat "{log}"; exit 7' TERM; echo BEGUN; wait $! ;;
*) exec {sys.executable} "$@" ;;
esac''',
    )
    process = begin("disaggregated.sh", *DEMO, PYTHON=str(tmp_path / "bin" / "python"), SERVER_LOGS=str(tmp_path),
                    own_group=True)  # fmt: skip
    read_until(process, "BEGUN")
    # a terminal interrupts all processes of the group, not the script alone
    if is_ctrl_c:
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.terminate()
    # the status is that of the ranks, and while they saved the server was there
    assert output(process, status=7) == "SAVED\nREADY\n"
    assert log.read_text() == "READY\nSIGTERM\n"


def test_a_server_that_ends_in_the_middle_is_told(tmp_path):
    fake(tmp_path / "bin", "python", f'''case "$*" in
*rollout_server.py*) sleep 1 ;;
*wait_for_servers.py*) ;;
*accelerate*) sleep 4 ;;
*) exec {sys.executable} "$@" ;;
esac''')  # fmt: skip
    text = output(begin("disaggregated.sh", *DEMO, PYTHON=str(tmp_path / "bin" / "python"), SERVER_LOGS=str(tmp_path)))
    assert text.count(f"a server ended (its log is in {tmp_path})") == 1


def test_servers_get_a_gpu_each_and_ranks_the_others(tmp_path):
    fake(
        tmp_path / "bin",
        "python",
        f"""case "$*" in
*rollout_server.py*) echo "GPU $CUDA_VISIBLE_DEVICES: $*"
  trap 'echo ENDED; kill $!; exit 0' TERM; sleep 60 & wait $! ;;
*wait_for_servers.py*) echo "WAIT $*"; sleep 1 ;;
*accelerate*) echo "RANKS $RLHF_RANKS GPUS $CUDA_VISIBLE_DEVICES: $*" ;;
*) exec {sys.executable} "$@" ;;
esac""",
    )
    text = output(begin("disaggregated.sh", *DEMO, MACHINE="gpu", CUDA_VISIBLE_DEVICES="0,1,4,5", SERVER_COUNT="1",
                        PYTHON=str(tmp_path / "bin" / "python"), SERVER_LOGS=str(tmp_path / "logs")))  # fmt: skip
    assert "RANKS 3 GPUS 0,1,4: " in text and "--engine.urls [http://127.0.0.1:8001]" in text
    log = (tmp_path / "logs" / "8001.log").read_text()
    assert log.startswith("GPU 5: ") and log.endswith("ENDED\n")
    # the checkpoint and the precision are the recipe's
    assert "--model embedded:smollm2-135m-instruct --host 127.0.0.1 --port 8001 --dtype float32" in log
