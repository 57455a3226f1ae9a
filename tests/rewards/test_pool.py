"""The grader pool: order, time limits, dying workers, threads, and that nothing is left behind."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from rlhf.rewards import GraderPool


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[GraderPool]:
    """Two workers with a limit of one second, whose tasks say how to misbehave."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    with GraderPool(workers=2, timeout_s=1.0, function="hostile_functions:misbehave") as opened:
        yield opened


def answer(text: object) -> dict[str, str]:
    return {"do": "answer", "text": str(text)}


def test_math_is_graded_in_order_and_a_thousand_samples_take_well_under_a_second() -> None:
    tasks = [
        {"scorer": "math", "completion": f"so $\\boxed{{\\frac{{{i}}}{{7}}}}$", "gold": f"\\frac{{{i + i % 3}}}{{7}}"}
        for i in range(1000)
    ]
    with GraderPool(workers=1) as opened:
        opened.map(tasks[:1])
        seconds = []
        for _ in range(3):  # the shortest: another process may have the core for a while
            started = time.perf_counter()
            verdicts = opened.map(tasks)
            seconds.append(time.perf_counter() - started)
    assert [v.outcome for v in verdicts] == ["right" if i % 3 == 0 else "wrong" for i in range(1000)]
    assert min(seconds) < 2.0  # 0.2 s on an idle core


@pytest.mark.parametrize("how", ["sleep", "regex"])
def test_a_hanging_task_is_cut_off_and_the_others_are_not_touched(pool: GraderPool, how: str) -> None:
    tasks = [answer(i) for i in range(40)]
    tasks[3] = {"do": how}
    pool.map([answer("warm")])
    started = time.perf_counter()
    verdicts = pool.map(tasks)
    assert time.perf_counter() - started < 6.0
    assert (verdicts[3].outcome, verdicts[3].timed_out) == ("ungradable", True)
    assert "within 1 s" in verdicts[3].reason
    assert [v.extracted for i, v in enumerate(verdicts) if i != 3] == [str(i) for i in range(40) if i != 3]
    assert not any(v.timed_out for i, v in enumerate(verdicts) if i != 3)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("exit", "exit status 7"),
        ("segfault", "SIGSEGV"),
        ("memory", "MemoryError"),
        ("raise", "KeyError: 'the text'"),
    ],
)
def test_a_dying_worker_costs_one_task_and_says_why(pool: GraderPool, how: str, reason: str) -> None:
    tasks = [answer(0), answer(1), {"do": how, "text": "the text"}, answer(3), answer(4)]
    verdicts = pool.map(tasks)
    assert verdicts[2].outcome == "ungradable" and not verdicts[2].timed_out
    assert "worker died" in verdicts[2].reason and reason in verdicts[2].reason
    assert [v.extracted for v in verdicts if v.outcome == "right"] == ["0", "1", "3", "4"]
    assert [v.extracted for v in pool.map([answer("again")])] == ["again"]


def test_what_a_function_prints_is_no_verdict(pool: GraderPool) -> None:
    assert [v.extracted for v in pool.map([{"do": "print"}, answer(1)])] == ["printed", "1"]


def test_workers_import_neither_torch_nor_the_main_module(pool: GraderPool) -> None:
    assert pool.map([{"do": "modules"}])[0].extracted == ""
    code = "import sys; import rlhf.rewards.worker, rlhf.rewards.scorers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_worker_killed_between_calls_is_replaced(pool: GraderPool) -> None:
    pool.map([answer(i) for i in range(8)])
    for child in psutil.Process().children():
        child.kill()
        child.wait()
    assert [v.extracted for v in pool.map([answer(i) for i in range(8)])] == [str(i) for i in range(8)]


def test_any_text_reaches_the_worker_whole(pool: GraderPool) -> None:
    texts = ["\ud83d", "\x00\n\r\u2028", "é" * 300_000, "", '"}\\']
    assert [v.extracted for v in pool.map([answer(t) for t in texts])] == texts


def test_calls_from_threads_take_turns(pool: GraderPool) -> None:
    results: dict[int, list[str | None]] = {}

    def call(number: int) -> None:
        results[number] = [v.extracted for v in pool.map([answer(number * 100 + i) for i in range(20)])]

    threads = [threading.Thread(target=call, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {n: [str(n * 100 + i) for i in range(20)] for n in range(4)}


def test_close_leaves_no_process_and_no_zombie(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    before = {child.pid for child in psutil.Process().children()}
    opened = GraderPool(workers=2, timeout_s=0.5, function="hostile_functions:misbehave")
    opened.map([answer(1), {"do": "spin"}, answer(2), answer(3)])
    assert {child.pid for child in psutil.Process().children()} > before
    opened.close()
    assert {child.pid for child in psutil.Process().children()} == before
    opened.close()
    with pytest.raises(RuntimeError, match="closed"):
        opened.map([answer(1)])


def test_workers_leave_when_the_parent_is_killed(tmp_path: Path) -> None:
    """A parent that is killed cannot close its pool; a worker stuck in a task must notice all the same."""
    code = (
        "import os, threading, time\n"
        "from rlhf.rewards import GraderPool\n"
        "pool = GraderPool(1, 100.0, 'hostile_functions:misbehave')\n"
        "pool.map([{'do': 'answer', 'text': ''}])\n"
        "threading.Thread(target=pool.map, args=([{'do': 'spin'}],), daemon=True).start()\n"
        "time.sleep(0.3)\n"
        "print(pool._workers[0].process.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False, timeout=60
    )
    worker = int(done.stdout)
    deadline = time.monotonic() + 10.0
    while psutil.pid_exists(worker) and psutil.Process(worker).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the worker outlives its parent"
        time.sleep(0.1)


def test_workers_that_cannot_start_are_an_error_not_a_loop() -> None:
    opened = GraderPool(function="no_such_module:grade")
    with opened, pytest.raises(RuntimeError, match=r"cannot be started.*no_such_module"):
        opened.map([answer(1)])


def test_nonsense_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="workers >= 1"):
        GraderPool(workers=0)
    with pytest.raises(ValueError, match="timeout_s > 0"):
        GraderPool(timeout_s=0)
