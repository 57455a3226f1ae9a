"""A thread for each rollout server: notices in seconds that it is gone, and gives it its weights when it is back."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Literal

from rlhf.rollouts.engine import EngineError
from rlhf.rollouts.server_client import RolloutServer, ServerFault

logger = logging.getLogger("rlhf.rollouts.server")

State = Literal["unknown", "ready", "down", "refused"]
Restore = Callable[[RolloutServer], None]


class ServerWatch:
    """What one server is up to: `ready` holds the expected weights, `down` does not answer.

    `changed` is notified of every change. `restore` gives a server that holds other weights the expected ones (on the
    main rank; the others wait for it to do so). Nothing here is collective.
    """

    def __init__(
        self, server: RolloutServer, changed: threading.Condition, *, heartbeat_s: float, heartbeat_timeout_s: float
    ) -> None:
        self.server, self.changed = server, changed
        self.heartbeat_s, self.heartbeat_timeout_s = heartbeat_s, heartbeat_timeout_s
        self.state: State = "unknown"
        self.reason = "not asked yet"
        self.pushing = threading.RLock()
        """Held while the server's weights are looked at or replaced."""
        self._expected: str | None = None
        self._restore: Restore | None = None
        self._answered = time.monotonic()
        self._wake = threading.Event()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name=f"watch {server.url}", daemon=True)
        self._thread.start()

    def expect(self, version: str, restore: Restore | None, *, is_held: bool = False) -> None:
        """From now on the server is ready if its weights have this label; `is_held`: it was just given them."""
        with self.changed:
            self._expected, self._restore = version, restore
            self._set(*(("ready", "") if is_held else ("unknown", "new weights")))
        self._wake.set()

    def suspect(self, reason: str) -> None:
        """Something went wrong: look again before it is called ready."""
        with self.changed:
            if self.state == "ready":
                self._set("unknown", reason)
        self._wake.set()

    def close(self) -> None:
        self._is_closed = True
        self._wake.set()
        self._thread.join(timeout=2 * self.heartbeat_s)

    def _run(self) -> None:
        while not self._is_closed:
            if self._expected is not None:
                with self.pushing:
                    self._look()
            self._wake.wait(self.heartbeat_s)
            self._wake.clear()

    def _look(self) -> None:
        expected = self._expected
        try:
            self.server.check_health()
            self._answered = time.monotonic()
            if self.state == "ready":
                return
            held = self.server.version()
            if held != expected and self._restore is not None:
                logger.warning("%s holds weights %r: pushing %r", self.server.url, held, expected)
                started = time.monotonic()
                self._restore(self.server)
                logger.warning("%s: pushed in %.1f s", self.server.url, time.monotonic() - started)
                held = expected
            with self.changed:
                if expected != self._expected:
                    return  # newer weights are on their way
                if held == expected:
                    self._set("ready", "")
                else:
                    remedy = "the main rank pushes those, else the server must be started again"
                    self._set("unknown", f"it holds weights {held!r}, not {expected!r}: {remedy}")
        except ServerFault as fault:
            self._fail(fault)
        except EngineError as error:
            with self.changed:
                self._set("refused", str(error))

    def _fail(self, fault: ServerFault) -> None:
        silent_s = time.monotonic() - self._answered
        with self.changed:
            if fault.is_gone or silent_s > self.heartbeat_timeout_s:
                if self.state != "down":
                    logger.warning("%s is down: %s", self.server.url, fault)
                self._set("down", str(fault))
            elif self.state != "ready":
                self._set(self.state, str(fault))
        if self.state == "down":
            self.server.abort_waiting()

    def _set(self, state: State, reason: str) -> None:
        self.state, self.reason = state, reason
        self.changed.notify_all()


def wait_ready(
    watches: Sequence[ServerWatch], changed: threading.Condition, within_s: float, why: str
) -> list[ServerWatch]:
    """The servers that are ready, as soon as there is one.

    Raises EngineError that tells each server's state where none becomes ready within `within_s` seconds, or where all
    refuse; `why` says what waits for them and what was reached before.
    """
    started = time.monotonic()
    with changed:
        while not (ready := [watch for watch in watches if watch.state == "ready"]):
            left_s = started + within_s - time.monotonic()
            if left_s <= 0 or all(watch.state == "refused" for watch in watches):
                states = "\n".join(f"  {watch.server.url}: {watch.state}: {watch.reason}" for watch in watches)
                raise EngineError(
                    f"{why}: no rollout server is ready after {time.monotonic() - started:.0f} s "
                    f"(engine.retry_for_s {within_s:g}):\n{states}\nStart the servers again (launch/rollout_server.py) "
                    "and then the same training command: it goes on from the last checkpoint"
                )
            changed.wait(left_s)
        return ready
