"""How a rollout server is started: vLLM's command, its environment, and files that come over HTTP."""

import asyncio
import importlib.util
from pathlib import Path

import pytest

from rlhf.rollouts.serving.command import ServerSettings, server_command, server_environment
from rlhf.rollouts.serving.uploads import FOLDER_VARIABLE, WeightUploads

ROOT = Path(__file__).parents[2]


def script():
    spec = importlib.util.spec_from_file_location("rollout_server", ROOT / "launch" / "rollout_server.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_options_reach_vllm_and_what_follows_the_dashes_too():
    settings = script().parse(
        ["--model", "m", "--port", "9", "--dtype", "float32", "--max-model-len", "9000", "--cuda-graphs", "--",
         "--uvicorn-log-level", "warning"]
    )  # fmt: skip
    command = " ".join(server_command(settings, is_cpu=False))
    for part in ("--model m", "--port 9", "--dtype float32", "--max-num-batched-tokens 9000", "--seed 0",
                 "--logprobs-mode processed_logprobs", "--generation-config vllm", "--gpu-memory-utilization 0.9",
                 "--host 127.0.0.1"):  # fmt: skip
        assert part in command
    assert command.endswith("--uvicorn-log-level warning") and "--enforce-eager" not in command
    on_cpu = " ".join(server_command(ServerSettings("m"), is_cpu=True))
    assert "--enforce-eager" in on_cpu and "--block-size 32" in on_cpu and "--gpu-memory" not in on_cpu


def test_the_environment_of_the_caller_stays_but_for_what_the_server_needs(monkeypatch):
    monkeypatch.delenv("VLLM_CPU_OMP_THREADS_BIND", raising=False)  # an engine in this process sets it
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "0")
    monkeypatch.delenv("VLLM_CPU_OMP_THREADS_BIND", raising=False)  # an engine in this process leaves it
    environment = server_environment(ServerSettings("m", port=9), is_cpu=True)
    assert (environment["OMP_NUM_THREADS"], environment["VLLM_SERVER_DEV_MODE"]) == ("7", "1")
    assert environment[FOLDER_VARIABLE].endswith("-9") and str(ROOT) in environment["PYTHONPATH"]
    assert "VLLM_CPU_OMP_THREADS_BIND" not in server_environment(ServerSettings("m"), is_cpu=False)


@pytest.fixture
def uploads(tmp_path, monkeypatch):
    folder = tmp_path / "uploads"
    folder.mkdir()
    (folder / "00009.safetensors").write_text("of a server before")
    monkeypatch.setenv(FOLDER_VARIABLE, str(folder))

    async def vllm(scope, receive, send):
        await send({"type": "http.response.start", "status": 299})

    return WeightUploads(vllm)


def ask(uploads: WeightUploads, method: str, path: str, *parts: bytes, is_whole: bool = True) -> int:
    """The status of the answer to a request whose body arrives in parts."""
    arriving = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    arriving.append(
        {"type": "http.request", "body": b"", "more_body": False} if is_whole else {"type": "http.disconnect"}
    )
    sent = []

    async def receive():
        return arriving.pop(0)

    async def send(message):
        sent.append(message)

    asyncio.run(uploads({"type": "http", "method": method, "path": path}, receive, send))
    return sent[0]["status"]


def test_a_file_comes_in_parts_and_goes_when_it_was_loaded(uploads):
    assert not uploads.folder.exists()
    assert ask(uploads, "PUT", "/rollout/weights/00000.safetensors", b"ab", b"cd") == 200
    assert (uploads.folder / "00000.safetensors").read_bytes() == b"abcd"
    assert ask(uploads, "GET", "/rollout/weights") == 200
    assert ask(uploads, "DELETE", "/rollout/weights") == 200 and not uploads.folder.exists()


@pytest.mark.parametrize("name", ["../a.safetensors", "a", "00000.safetensors/../../b", "0.safetensors", ""])
def test_no_other_file_is_written(uploads, name):
    assert ask(uploads, "PUT", f"/rollout/weights/{name}", b"x") == 404
    assert not uploads.folder.exists()


def test_an_upload_that_breaks_off_is_refused_and_other_requests_go_on_to_vllm(uploads):
    assert ask(uploads, "PUT", "/rollout/weights/00000.safetensors", b"ab", is_whole=False) == 400
    assert ask(uploads, "GET", "/health") == 299
