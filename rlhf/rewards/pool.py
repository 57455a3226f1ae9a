"""Grading in worker processes that can be killed, so that no completion can hang, crash or bloat the training process.

Workers are started as `python -m rlhf.rewards.worker`, not through multiprocessing: they import neither the user's main
module nor torch, hold no lock of a forked parent, and need no `if __name__ == "__main__"`. Signals are not used, so the
pool works from any thread (SIGALRM, which other graders use, works only in the main one).
"""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import rlhf
from rlhf.data.types import Verdict
from rlhf.rewards.scorers import GradingTask

START_TIMEOUT_S = 120.0
"""Longest time a worker may take to start; it takes well under a second where the machine is idle."""
MAX_STARTS_WITHOUT_WORK = 3
"""A worker that dies this often before it is ready is broken, not unlucky."""
MAX_CHUNK = 64
"""Tasks sent at once: few enough to spread over the workers, many enough that the pipe costs nothing."""
READ_BYTES = 1 << 16


class GraderPool:
    """`workers` processes that apply `function` to tasks, each within `timeout_s` seconds of wall clock.

    `function` is `module:name`, a function from a task to a `Verdict`. Workers start on the first call.
    """

    def __init__(
        self, workers: int = 1, timeout_s: float = 10.0, function: str = "rlhf.rewards.scorers:score_task"
    ) -> None:
        if workers < 1 or timeout_s <= 0:
            raise ValueError(f"a pool needs workers >= 1 and timeout_s > 0, not {workers} and {timeout_s}")
        self.timeout_s = timeout_s
        self._function = function
        self._limit = workers
        self._workers: list[_Worker] = []
        self._lock = threading.Lock()
        self._closed = False
        self._finalizer = weakref.finalize(self, _close_all, self._workers)

    def __enter__(self) -> "GraderPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def map(self, tasks: Sequence[GradingTask]) -> list[Verdict]:
        """The verdicts, in the order of `tasks`.

        A task past the time limit gives an ungradable verdict with `timed_out`; one whose worker dies gives an
        ungradable verdict with the reason. Neither touches the other tasks. Calls from several threads take turns.
        Raises `RuntimeError` if the pool is closed or its workers cannot be started.
        """
        with self._lock:
            if self._closed:
                raise RuntimeError("this GraderPool is closed")
            return _Round(self, tasks).run() if tasks else []

    def close(self) -> None:
        """End the workers and wait for them; the pool cannot be used afterwards."""
        with self._lock:
            self._closed = True
            self._finalizer()

    def _ready_workers(self, wanted: int) -> "list[_Worker]":
        """Up to `wanted` live workers; those that died between calls are replaced."""
        for worker in [w for w in self._workers if w.process.poll() is not None]:
            self._remove(worker)
        while len(self._workers) < min(wanted, self._limit):
            self._workers.append(_Worker(self._function))
        return self._workers[:wanted]

    def _remove(self, worker: "_Worker") -> None:
        worker.kill()
        self._workers.remove(worker)


def _close_all(workers: "list[_Worker]") -> None:
    for worker in workers:
        worker.stdin.close()
    for worker in workers:
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.process.wait(timeout=0.5)
        worker.kill()
    workers.clear()


class _Worker:
    """One process, the tasks it was sent and has not answered, and the bytes on their way."""

    def __init__(self, function: str) -> None:
        package_root = str(Path(rlhf.__file__).resolve().parent.parent)
        paths = [package_root, *(p for p in sys.path if p)]
        self.errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "rlhf.rewards.worker", function, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C is the parent's to handle
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        os.set_blocking(self.stdin.fileno(), False)
        os.set_blocking(self.stdout.fileno(), False)
        self.ready = False
        self.waiting: deque[int] = deque()
        self.outgoing = b""
        self.incoming = b""
        self.deadline = time.monotonic() + START_TIMEOUT_S

    def kill(self) -> None:
        """End the process, collect its exit status (no zombie), and close the pipes."""
        self.process.kill()
        self.process.wait()
        self.stdin.close()
        self.stdout.close()
        self.errors.close()

    def death(self) -> str:
        """Why the process ended, in words. Call before `kill`."""
        try:
            status = self.process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            return "the grading worker closed its pipe"
        self.errors.seek(0, os.SEEK_END)
        self.errors.seek(max(0, self.errors.tell() - 2000))
        lines = self.errors.read().decode("utf-8", "replace").strip().splitlines()
        how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        return f"the grading worker died ({how})" + (f": {lines[-1][:300]}" if lines else "")


class _Round:
    """One call of `map`: hands out chunks, collects replies, replaces workers that are late or dead."""

    def __init__(self, pool: GraderPool, tasks: Sequence[GradingTask]) -> None:
        self.pool = pool
        self.tasks = tasks
        self.verdicts: list[Verdict | None] = [None] * len(tasks)
        self.left = len(tasks)
        self.queue = deque(range(len(tasks)))
        self.failed_starts = 0
        self.selector = selectors.DefaultSelector()
        share = -(-len(tasks) // (4 * pool._limit))
        self.chunk = max(1, min(MAX_CHUNK, share))

    def run(self) -> list[Verdict]:
        try:
            for worker in self.pool._ready_workers(len(self.tasks)):
                self._watch(worker)
            while self.left:
                self._step()
        finally:
            for key in list(self.selector.get_map().values()):
                self.selector.unregister(key.fileobj)
            self.selector.close()
            for worker in [w for w in self.pool._workers if w.waiting or w.outgoing]:
                self.pool._remove(worker)  # interrupted: its late replies must not be taken for the next call's
        return [v for v in self.verdicts if v is not None]

    def _watch(self, worker: _Worker) -> None:
        self.selector.register(worker.stdout, selectors.EVENT_READ, worker)
        if worker.ready:
            self._send(worker)

    def _step(self) -> None:
        busy = [w for w in self._watched() if w.waiting or not w.ready]
        now = time.monotonic()
        for worker in busy:
            if worker.deadline <= now:
                self._late(worker)
        pause = min((w.deadline for w in self._watched() if w.waiting or not w.ready), default=now) - time.monotonic()
        for key, events in self.selector.select(max(0.0, pause)):
            worker = key.data
            if worker not in self.pool._workers:
                continue
            if events & selectors.EVENT_WRITE:
                self._write(worker)
            else:
                self._read(worker)

    def _watched(self) -> list[_Worker]:
        return list({id(k.data): k.data for k in self.selector.get_map().values()}.values())

    def _send(self, worker: _Worker) -> None:
        indices = [self.queue.popleft() for _ in range(min(self.chunk, len(self.queue)))]
        if not indices:
            return
        worker.waiting.extend(indices)
        worker.deadline = time.monotonic() + self.pool.timeout_s
        worker.outgoing = json.dumps([self.tasks[i] for i in indices]).encode("ascii") + b"\n"
        self.selector.register(worker.stdin, selectors.EVENT_WRITE, worker)
        self._write(worker)

    def _write(self, worker: _Worker) -> None:
        try:
            sent = os.write(worker.stdin.fileno(), worker.outgoing)
        except BlockingIOError:
            return
        except BrokenPipeError:
            return self._dead(worker)
        worker.outgoing = worker.outgoing[sent:]
        worker.deadline = time.monotonic() + self.pool.timeout_s
        if not worker.outgoing:
            self.selector.unregister(worker.stdin)
        return None

    def _read(self, worker: _Worker) -> None:
        try:
            data = os.read(worker.stdout.fileno(), READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._dead(worker)
            return
        *lines, worker.incoming = (worker.incoming + data).split(b"\n")
        for line in lines:
            reply = json.loads(line)
            if reply == "ready":
                worker.ready = True
            else:
                self._finish(worker.waiting.popleft(), Verdict(**reply))
                worker.deadline = time.monotonic() + self.pool.timeout_s
        if worker.ready and not worker.waiting:
            self._send(worker)

    def _finish(self, index: int, verdict: Verdict) -> None:
        self.verdicts[index] = verdict
        self.left -= 1

    def _late(self, worker: _Worker) -> None:
        if not worker.ready:
            self._replace(worker, f"a grading worker did not start within {START_TIMEOUT_S:g} s")
            return
        reason = f"no verdict within {self.pool.timeout_s:g} s"
        self._finish(worker.waiting.popleft(), Verdict("ungradable", reason=reason, timed_out=True))
        self._replace(worker, reason)

    def _dead(self, worker: _Worker) -> None:
        reason = worker.death()
        if worker.ready and worker.waiting:
            self._finish(worker.waiting.popleft(), Verdict("ungradable", reason=reason))
        self._replace(worker, reason)

    def _replace(self, worker: _Worker, reason: str) -> None:
        """Put back what `worker` was sent and did not reach, and start another in its place."""
        if not worker.ready:
            self.failed_starts += 1
        self.queue.extendleft(reversed(worker.waiting))
        worker.waiting.clear()
        for pipe in (worker.stdin, worker.stdout):
            if pipe.fileno() in self.selector.get_map():
                self.selector.unregister(pipe)
        self.pool._remove(worker)
        if self.failed_starts >= MAX_STARTS_WITHOUT_WORK:
            raise RuntimeError(f"grading workers cannot be started: {reason}")
        if self.queue:
            fresh = _Worker(self.pool._function)
            self.pool._workers.append(fresh)
            self._watch(fresh)
