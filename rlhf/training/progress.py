"""What a person sees in the terminal while a run goes on: a live display, or one plain line per step in a log."""

import itertools
import math
import time
import unicodedata
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rlhf.data.types import Sample
from rlhf.training.report.evaluation_figures import change_between, main_figure
from rlhf.training.statistics import intervals_overlap

SPARKS = "▁▂▃▄▅▆▇█"
RECENT_STEPS = 10
PLAIN_METRICS = (
    ("a turn", "dialogue/reward_per_turn", "{:.3f}"),
    ("entropy", "policy/entropy", "{:.3f}"),
    ("ratio", "policy/ratio_mean", "{:.4f}"),
    ("gradient", "gradient/norm", "{:.3g}"),
    ("length", "tokens/completion_mean", "{:.1f}"),
    ("tokens/s", "speed/tokens_per_second", "{:,.0f}"),
)
OUTCOME_STYLE = {"right": "green", "wrong": "red", "ungradable": "yellow"}


class ProgressDisplay:
    """Shows steps, evaluations and completions; silent on every process but the main one.

    On a terminal a live panel stays at the bottom. Elsewhere (CI, a log file) each step is one line, no control codes.
    """

    def __init__(self, total_steps: int, main_process: bool = True, console: Console | None = None) -> None:
        self._console = console or Console()
        self._main = main_process
        self._total = total_steps
        self._done = 0
        self._start = self._step_end = time.monotonic()
        self._step_seconds: list[float] = []
        self._last: Mapping[str, Any] = {}
        self._rewards: list[float] = []
        self._live: Live | None = None

    def __enter__(self) -> "ProgressDisplay":
        if self._main and self._console.is_terminal:
            self._live = Live(get_renderable=self._panel, console=self._console, refresh_per_second=2, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the live panel down; idempotent."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def message(self, text: str) -> None:
        """Print text as it is (the batch table, the memory plan, a warning): no markup, no wrapping."""
        if self._main:
            self._console.print(Text(printable(text, keep_newlines=True)), soft_wrap=True, highlight=False)

    def step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Step `step` of the total is done with these metrics."""
        if not self._main:
            return
        self._done = step
        self._last = metrics
        now = time.monotonic()
        self._step_seconds.append(metrics.get("time/step", now - self._step_end))
        self._step_end = now
        if isinstance(reward := metrics.get("reward/mean"), int | float):
            self._rewards.append(float(reward))
        if self._live is None:
            self.message(self._plain_line())

    def evaluation(self, record: Mapping[str, Any]) -> None:
        """One line of evaluations.jsonl, with its 95 % interval."""
        if self._main:
            figure = main_figure(record)
            if figure.is_share:
                counts = f"{record['right']} of {record['n']} right, {record['ungradable']} ungradable"
            else:
                counts = f"{record['n']} sessions, {record['turns']} turns"
            self.message(
                f"evaluation {record['name']} at step {record['step']}: {figure.label} {figure.text} "
                f"({counts}, {100 * record['truncated_share']:.0f} % cut off)"
            )

    def print_completions(self, samples: Sequence[Sample], n: int) -> None:
        """A table of the first `n` samples: the prompt's end, the completion, its rewards and its verdict."""
        if self._main and n and samples:
            self._console.print(completions_table(samples[:n], step=self._done))

    def summary(
        self,
        before: Mapping[str, Any] | None,
        after: Mapping[str, Any] | None,
        wall_seconds: float,
        places: Mapping[str, Any],
    ) -> None:
        """The last word of a run: accuracy before and after (evaluation records), wall time, and where things are."""
        if not self._main:
            return
        self.close()
        lines = [*accuracy_lines(before, after), f"wall time {duration(wall_seconds)}"]
        lines += [f"{name}: {place}" for name, place in places.items()]
        text = Text(printable("\n".join(lines), keep_newlines=True), overflow="fold")
        if self._console.is_terminal:
            self._console.print(Panel(text, title="run finished", border_style="green", expand=False))
        else:
            self.message(f"run finished\n{text.plain}")

    def _eta(self) -> float | None:
        """Seconds left, from the mean time of recent steps."""
        recent = self._step_seconds[-RECENT_STEPS:]
        return sum(recent) / len(recent) * (self._total - self._done) if recent else None

    def _fields(self) -> dict[str, str]:
        """What both displays say about the last step, by label."""
        last = self._last
        fields = {}
        if self._rewards:
            recent = self._rewards[-RECENT_STEPS:]
            fields["reward"] = f"{self._rewards[-1]:.3f} (last {len(recent)}: {sum(recent) / len(recent):.3f})"
        for label, key, form in PLAIN_METRICS:
            if isinstance(value := last.get(key), int | float):
                fields[label] = form.format(value)
        phases = {k.removeprefix("time/"): v for k, v in last.items() if k.startswith("time/") and k != "time/step"}
        longest = sorted(phases.items(), key=lambda item: item[1], reverse=True)[:4]
        if longest:
            fields["time"] = ", ".join(f"{name} {duration(seconds)}" for name, seconds in longest)
        return fields

    def _plain_line(self) -> str:
        parts = [f"{label} {text}" for label, text in self._fields().items()]
        eta = self._eta()
        return " | ".join([f"step {self._done}/{self._total}", *parts, *([f"eta {duration(eta)}"] if eta else [])])

    def _panel(self) -> RenderableType:
        eta = self._eta()
        head = Table.grid(padding=(0, 1), expand=True)
        head.add_column(no_wrap=True)
        head.add_column(ratio=1)
        head.add_column(no_wrap=True, justify="right")
        clock = f"{duration(time.monotonic() - self._start)} gone, eta {duration(eta) if eta is not None else '?'}"
        head.add_row(f"step {self._done}/{self._total}", ProgressBar(self._total, self._done), clock)
        grid = Table.grid(padding=(0, 2))
        for label, text in self._fields().items():
            value = Text(text)
            if label == "reward":
                value.append(f"  {sparkline(self._rewards, 40)}", style="cyan")
            grid.add_row(Text(label, style="dim"), value)
        return Panel(Group(head, grid), border_style="blue")


def printable(text: str, keep_newlines: bool = False) -> str:
    """Text that cannot steer a terminal: control, format and surrogate characters become visible stand-ins."""
    return "".join(
        _stand_in(c) if unicodedata.category(c) in ("Cc", "Cf", "Cs") and not (keep_newlines and c == "\n") else c
        for c in text
    )


def _stand_in(character: str) -> str:
    if ord(character) < 0x20:
        return "⏎" if character == "\n" else chr(0x2400 + ord(character))
    # The joiners hold emoji and some scripts together and steer nothing.
    return character if character in "\u200c\u200d" else "\ufffd"


def cut(text: str, limit: int, keep: str = "start") -> str:
    """At most `limit` characters, with … where text is missing; `keep` is `start`, `end` or `both`."""
    if len(text) <= limit:
        return text
    if keep == "end":
        return "…" + text[len(text) - limit + 1:]
    if keep == "both":
        head = (limit - 3) // 2
        return f"{text[:head]} … {text[len(text) - (limit - 3 - head):]}"
    return text[:limit - 1] + "…"


def completions_table(samples: Sequence[Sample], step: int) -> Table:
    """Completions as a table in which no character of a model is read as markup."""
    table = Table(title=f"completions at step {step}", show_lines=True, title_justify="left")
    for name, ratio in (("prompt", 2), ("completion", 4), ("reward", 1), ("verdict", 2)):
        table.add_column(name, ratio=ratio, overflow="fold")
    for sample in samples:
        prompt = sample.prompt.text
        question = prompt if isinstance(prompt, str) else str(prompt[-1].get("content", "")) if prompt else ""
        rewards = [f"{sample.reward:.3g}" if sample.reward is not None else "none"]
        if len(sample.rewards) > 1:
            rewards += [f"{k} {v:.3g}" if v is not None else f"{k} none" for k, v in sample.rewards.items()]
        verdict = Text("not judged", style="dim")
        if sample.verdict is not None:
            verdict = Text(sample.verdict.outcome, style=OUTCOME_STYLE[sample.verdict.outcome])
            if sample.verdict.extracted is not None:
                verdict.append(f"\nread {cut(printable(sample.verdict.extracted), 80)}", style="default")
            if sample.verdict.reason:
                verdict.append(f"\n{cut(printable(sample.verdict.reason), 120)}", style="dim")
        length = f"{len(sample.completion_ids)} tokens{', cut off' if sample.truncated else ''}"
        said = printable(_said(sample), keep_newlines=bool(sample.messages))
        completion = Text(cut(said, 400, keep="both")).append(f"\n{length}", style="dim")
        table.add_row(Text(cut(printable(question), 200, keep="end")), completion, Text("\n".join(rewards)), verdict)
    return table


def _said(sample: Sample) -> str:
    return dialogue_text(sample.messages, sample.turn_rewards) if sample.messages else sample.text


def dialogue_text(messages: Sequence[str], turn_rewards: Sequence[float]) -> str:
    """A dialogue as lines: the model's turns with what they earned, where that is not 0, and the answers to them."""
    lines = []
    for place, message in enumerate(messages):
        earned = turn_rewards[place // 2] if place % 2 == 0 else 0
        note = f"   [{earned:+g}]" if earned else ""
        lines.append(f"{('model', 'environment')[place % 2]}: {printable(message)}{note}")
    return "\n".join(lines)


def sparkline(values: Sequence[float], width: int) -> str:
    """The last values as bars, averaged so that all fit into `width` characters; NaN is a gap."""
    values = list(values)
    if len(values) > width:
        edges = [i * len(values) // width for i in range(width + 1)]
        values = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    finite = [v for v in values if math.isfinite(v)]
    if not finite:
        return ""
    low, span = min(finite), (max(finite) - min(finite)) or 1.0
    top = len(SPARKS) - 1
    return "".join(SPARKS[round((v - low) / span * top)] if math.isfinite(v) else " " for v in values)


def duration(seconds: float) -> str:
    """`8.2 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def accuracy_lines(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> list[str]:
    """Accuracy, or the reward of a turn, before and after with 95 % intervals, and what the two allow to say."""
    lines = []
    for label, record in (("before", before), ("after", after)):
        if record is not None:
            figure = main_figure(record)
            count = f"{record['right']} of {record['n']}" if figure.is_share else f"{record['n']} sessions"
            lines.append(f"{figure.label} {label}: {figure.text} ({count})")
    if before is not None and after is not None:
        apart = not intervals_overlap((before["low"], before["high"]), (after["low"], after["high"]))
        lines.append(f"change: {change_between(before, after).text}; "
                     f"the 95 % intervals {'do not overlap' if apart else 'overlap'}")
    return lines or ["no evaluation was made"]
