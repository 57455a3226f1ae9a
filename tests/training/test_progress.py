import io
import math
import re

import pytest
from rich.console import Console

from rlhf.data.types import Prompt, Sample, Verdict
from rlhf.training.progress import ProgressDisplay, cut, duration, printable, sparkline

BEFORE = {"step": 0, "name": "held_out", "right": 10, "wrong": 20, "ungradable": 0, "n": 30, "accuracy": 1 / 3,
          "low": 0.192, "high": 0.512, "mean_tokens": 9.0, "truncated_share": 0.1}
AFTER = BEFORE | {"step": 2, "right": 27, "wrong": 3, "accuracy": 0.9, "low": 0.744, "high": 0.965}
METRICS = {"reward/mean": 0.25, "policy/entropy": 0.5, "gradient/norm": math.nan, "time/generate": 2.0,
           "time/update": 3.0, "time/step": 10.0, "speed/tokens_per_second": 1234.0}
HOSTILE = "[red]markup[/red] [/] \x1b[2J\x1b]0;title\x07 \u202eoverride \ud800 end"


def sample(text=HOSTILE):
    prompt = Prompt("a:1", (1,), [{"role": "user", "content": "3 + 4? [bold]"}])
    return Sample(prompt, 0, (5,), (0.0,), "length", 0, 0, text, {"correctness": 0.0, "format": None}, 0.0,
                  Verdict("ungradable", None, "no number [x]"))


def run_through(terminal, main_process=True):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=100)
    with ProgressDisplay(2, main_process, console) as display:
        display.message("plan [kept] as is")
        display.evaluation(BEFORE)
        display.step(1, METRICS)
        display.print_completions([sample()], 1)
        display.step(2, METRICS | {"reward/mean": 0.75})
    display.summary(BEFORE, AFTER, 200.0, {"report": "runs/x/report.html"})
    return stream.getvalue()


def test_a_log_gets_one_plain_line_per_step():
    output = run_through(terminal=False)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\x9b]", output)
    steps = [line for line in output.splitlines() if line.startswith("step ")]
    assert steps == [
        "step 1/2 | reward 0.250 (last 1: 0.250) | entropy 0.500 | gradient nan | tokens/s 1,234 | "
        "time update 3.0 s, generate 2.0 s | eta 10.0 s",
        "step 2/2 | reward 0.750 (last 2: 0.500) | entropy 0.500 | gradient nan | tokens/s 1,234 | "
        "time update 3.0 s, generate 2.0 s",
    ]
    for expected in ("plan [kept] as is", "accuracy 33.3 % [19.2, 51.2] (10 of 30 right, 0 ungradable, 10 % cut off)",
                     "accuracy after: 90.0 % [74.4, 96.5] (27 of 30)", "change: +56.7 points",
                     "the 95 % intervals do not overlap",
                     "wall time 3 min 20 s", "report: runs/x/report.html"):
        assert expected in output


def test_a_models_text_is_shown_and_not_obeyed():
    output = run_through(terminal=False)
    assert "[red]markup[/red]" in output.replace("\n", "")
    assert "no number [x]" in output and "3 + 4? [bold]" in output
    assert "\u202e" not in output and "\ud800" not in output
    terminal = run_through(terminal=True)
    assert "\x1b[2J" not in terminal and "\x1b]0;" not in terminal
    assert "step 2/2" in terminal and "run finished" in terminal


def test_other_processes_are_silent():
    assert run_through(terminal=False, main_process=False) == ""
    assert run_through(terminal=True, main_process=False) == ""


def test_the_live_panel_is_taken_down_when_the_run_fails():
    stream = io.StringIO()
    with pytest.raises(RuntimeError), ProgressDisplay(2, console=Console(file=stream, force_terminal=True)) as display:
        raise RuntimeError("engine is gone")
    assert display._live is None
    assert stream.getvalue().rstrip().endswith("\x1b[2K") and "\x1b[?25h" in stream.getvalue()


def test_small_helpers():
    assert printable("a\nb\x1b\u202e\ud800\x7f👩\u200d🚀") == "a⏎b␛\ufffd\ufffd\ufffd👩\u200d🚀"
    assert (cut("abcdef", 4), cut("abcdef", 4, "end"), cut("abcdef", 6)) == ("abc…", "…def", "abcdef")
    assert cut("0123456789abcdef", 9, "both") == "012 … def"
    assert [len(cut("x" * 50, n, keep)) for n in (7, 8) for keep in ("start", "end", "both")] == [7, 7, 7, 8, 8, 8]
    assert sparkline([0, 1, math.nan, 0.5], 10) == "▁█ ▅"
    assert sparkline([0, 0, 1, 1], 2) == "▁█" and sparkline([], 5) == "" and sparkline([2.0], 5) == "▁"
    assert [duration(s) for s in (8.24, 59.96, 200, 7500)] == ["8.2 s", "60.0 s", "3 min 20 s", "2 h 05 min"]
