"""One rollout server over HTTP: every call is bounded in time, and every failure names the server and the phase."""

import http.client
import json
import socket
import threading
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from rlhf.rollouts.engine import EngineError

CONNECT_TIMEOUT_S = 5.0
# of an error's text, which may be a whole traceback
LONGEST_REASON = 600
GENERATE = "generate"
INCOMPLETE = "incomplete"
"""The version of a server whose weights are being replaced: samples of it are refused."""


class ServerFault(RuntimeError):
    """A server did not answer, or answered that it failed: it may be well again later. Names server and phase.

    `is_gone`: nothing listens at the address, so its process has ended (or has not yet begun to listen)."""

    def __init__(self, message: str, is_gone: bool = False) -> None:
        super().__init__(message)
        self.is_gone = is_gone


class RolloutServer:
    """The endpoints of one server (vLLM's, and those of rollouts/serving). Safe to call from several threads.

    Each method raises ServerFault where the server did not do it, and EngineError where asking again is of no use.
    """

    def __init__(self, url: str, *, push_timeout_s: float, probe_timeout_s: float) -> None:
        parts = urlsplit(url)
        self.url, self.host, self.port = url, parts.hostname or "", parts.port or 80
        self.push_timeout_s, self.probe_timeout_s = push_timeout_s, probe_timeout_s
        self._lock = threading.Lock()
        self._waiting: set[http.client.HTTPConnection] = set()

    @property
    def is_local(self) -> bool:
        """Whether its address says that it runs on this machine."""
        return self.host in ("127.0.0.1", "localhost", "::1")

    def check_health(self) -> None:
        self._call("GET", "/health", "health check", self.probe_timeout_s)

    def version(self) -> str:
        """The label of the weights that it computes with."""
        return str(self._call("GET", "/weight_info", "version", self.probe_timeout_s)["weight_version"])

    def describe(self) -> dict[str, Any]:
        """Its dtype, max_model_len and world_size."""
        return self._rpc("describe_rollout_engine", [], "description", self.probe_timeout_s)

    def generate(self, body: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        return self._call("POST", "/inference/v1/generate", GENERATE, timeout_s, body)

    def reset_prefix_cache(self) -> bool:
        """False where running completions hold it."""
        return bool(self._call("POST", "/reset_prefix_cache", "cache reset", self.probe_timeout_s)["success"])

    def checksums(self) -> dict[str, str]:
        return self._rpc("weight_checksums_by_hf_name", [], "checksums", self.push_timeout_s)

    def pause(self) -> None:
        """Let running completions end and begin no others. Safe to repeat."""
        self._call("POST", "/pause?mode=wait", "pause before a weight update", self.push_timeout_s)

    def resume(self) -> None:
        self._call("POST", "/resume", "resume after a weight update", self.push_timeout_s)

    def set_version(self, version: str) -> None:
        body = {"new_version": version}
        self._call("POST", "/update_weight_version", "version update", self.push_timeout_s, body)

    def push(self, folder: Path, names: list[str], version: str, *, over_http: bool) -> None:
        """Replace all weights by those of safetensors files and label them. Safe to repeat after any failure: until
        it succeeds the server's version is `INCOMPLETE`, whose samples are refused."""
        self.pause()
        try:
            self.set_version(INCOMPLETE)
            if over_http:
                for name in names:
                    self._upload(folder / name)
                folder = Path(self._call("GET", "/rollout/weights", "upload", self.push_timeout_s)["folder"])
            self._load(folder, names)
            if over_http:
                self._call("DELETE", "/rollout/weights", "upload", self.push_timeout_s)
            # nothing runs, so nothing can hold the cache
            if not self.reset_prefix_cache():
                raise ServerFault(f"{self.url}: cache reset: prefixes of the old weights are still cached")
            self.set_version(version)
        finally:
            self.resume()

    def _load(self, folder: Path, names: list[str]) -> None:
        try:
            self._rpc("load_weight_files", [str(folder), names], "weight update", self.push_timeout_s)
        except ServerFault as fault:
            self.check_health()
            # it is well and could not: the files are not visible, or of another model
            raise EngineError(str(fault)) from fault

    def abort_waiting(self) -> None:
        """Wake all threads that wait for completions: they raise ServerFault."""
        with self._lock:
            waiting = list(self._waiting)
        for connection in waiting:
            if connection.sock is not None:
                try:
                    connection.sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue  # closed in the meantime

    def _rpc(self, method: str, arguments: list[Any], phase: str, timeout_s: float) -> Any:
        body = {"method": method, "args": arguments}
        return self._call("POST", "/collective_rpc", phase, timeout_s, body)["results"][0]

    def _upload(self, path: Path) -> None:
        size = path.stat().st_size
        with path.open("rb") as file:
            headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
            route = f"/rollout/weights/{path.name}"
            stored = self._exchange("PUT", route, "upload", self.push_timeout_s, file, headers)
        if stored.get("bytes") != size:
            raise ServerFault(f"{self.url}: upload: {path.name} has {size} bytes, the server got {stored}")

    def _call(self, method: str, path: str, phase: str, timeout_s: float, body: Any = None) -> Any:
        content = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        return self._exchange(method, quote(path, "/?=&"), phase, timeout_s, content, headers)

    def _exchange(
        self, method: str, path: str, phase: str, timeout_s: float, content: Any, headers: dict[str, str]
    ) -> Any:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=min(CONNECT_TIMEOUT_S, timeout_s))
        try:
            connection.connect()
            connection.sock.settimeout(timeout_s)
            if phase == GENERATE:
                with self._lock:
                    self._waiting.add(connection)
            connection.request(method, path, body=content, headers=headers | {"Connection": "close"})
            response = connection.getresponse()
            text = response.read().decode("utf-8", errors="replace")
        except ConnectionRefusedError as error:
            raise ServerFault(f"{self.url}: {phase}: nothing listens there", is_gone=True) from error
        except TimeoutError as error:
            raise ServerFault(f"{self.url}: {phase}: no answer for {timeout_s:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            raise ServerFault(f"{self.url}: {phase}: {type(error).__name__}: {error}") from error
        finally:
            with self._lock:
                self._waiting.discard(connection)
            connection.close()
        return self._answer(response.status, text, phase)

    def _answer(self, status: int, text: str, phase: str) -> Any:
        if 400 <= status < 500:
            raise EngineError(f"{self.url}: {phase}: refused with HTTP {status}: {text[:LONGEST_REASON]}")
        if status >= 300:
            raise ServerFault(f"{self.url}: {phase}: HTTP {status}: {text[:LONGEST_REASON]}")
        try:
            return json.loads(text) if text else {}
        except json.JSONDecodeError as error:
            raise ServerFault(f"{self.url}: {phase}: an answer that is no JSON: {text[:LONGEST_REASON]!r}") from error
