"""Weights that come in the body of an HTTP request, kept in the server's memory until they are loaded.

Only vLLM's web process imports this module (`--middleware`): PUT /rollout/weights/<file> stores a file,
DELETE /rollout/weights removes all, GET /rollout/weights says where they lie. All else goes on to vLLM.
"""

import json
import os
import re
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

FOLDER_VARIABLE = "RLHF_UPLOAD_FOLDER"
ROUTE = "/rollout/weights"
FILE_NAME = re.compile(r"[0-9]{5}\.safetensors")

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class WeightUploads:
    """ASGI middleware around vLLM's application. The folder is that of `FOLDER_VARIABLE`, emptied at the start."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app
        self.folder = Path(os.environ[FOLDER_VARIABLE])
        self.clear()

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] != "http" or not path.startswith(ROUTE):
            await self.app(scope, receive, send)
            return
        name = path.removeprefix(ROUTE).strip("/")
        try:
            status, answer = await self.answer(scope["method"], name, receive)
        except OSError as error:
            status, answer = 507, {"error": f"{type(error).__name__}: {error}"}
        body = json.dumps(answer).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def answer(self, method: str, name: str, receive: Receive) -> tuple[int, dict[str, Any]]:
        """(HTTP status, body) for a request."""
        if method == "GET" and not name:
            return 200, {"folder": str(self.folder)}
        if method == "DELETE" and not name:
            self.clear()
            return 200, {}
        if method != "PUT" or not FILE_NAME.fullmatch(name):
            return 404, {"error": f"no such thing: {method} {ROUTE}/{name}"}
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        size = 0
        with (self.folder / name).open("wb") as file:
            is_more = True
            while is_more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return 400, {"error": f"the upload of {name} broke off after {size} bytes"}
                size += file.write(message.get("body", b""))
                is_more = message.get("more_body", False)
        return 200, {"bytes": size}

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
