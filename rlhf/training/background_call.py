"""One call in a thread of its own, beside the main thread: its result or its error at the join, or its end at once."""

import ctypes
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

import torch

Result = TypeVar("Result")
ABANDON_TIMEOUT_S = 10.0
"""An abandoned call ends at its next line of Python: between two tokens of an engine, far below this. A reward function
that is waited for is left behind."""


class Abandoned(BaseException):
    """Ends a call whose result nobody waits for. No `Exception`: engines turn those into errors of their own."""


class BackgroundCall(Generic[Result]):
    """Starts `call` at once, without gradients and on this thread's CUDA device: both belong to a thread.

    Random states, the default dtype and the number of threads belong to the process: `call` must leave them alone.
    """

    def __init__(self, call: Callable[[], Result], name: str) -> None:
        self._call, self._name = call, name
        self._device = torch.cuda.current_device() if torch.cuda.is_initialized() else None
        # not Thread.join: interrupted by Ctrl-C, it takes a running thread for one that has ended
        self._ended = threading.Event()
        self._error: BaseException | None = None
        self.seconds = 0.0
        """How long the call took."""
        # a daemon, or a call that cannot be ended would keep the process alive
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def result(self) -> Result:
        """What the call returns, waited for; or what it raised, with a note that says which call it was."""
        self._ended.wait()
        if self._error is not None:
            self._error.add_note(f"raised in the thread that was busy with: {self._name}")
            raise self._error
        return self._result

    def abandon(self) -> None:
        """End the call, as an exception at its next line of Python, and wait for that."""
        if not self._ended.is_set():
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(self._thread.ident or 0), ctypes.py_object(Abandoned)
            )
            self._ended.wait(ABANDON_TIMEOUT_S)

    def _run(self) -> None:
        start = time.perf_counter()
        try:
            if self._device is not None:
                torch.cuda.set_device(self._device)
            with torch.no_grad():
                self._result = self._call()
        except BaseException as error:  # noqa: BLE001 - it is raised again where the result is asked for
            self._error = error
        finally:
            self.seconds = time.perf_counter() - start
            self._ended.set()
