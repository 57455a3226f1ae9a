"""What a person sees while an evaluation goes on: a bar on a terminal, one plain line a batch in a log."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class EvalProgress:
    """Samples done, tokens a second and the running accuracy of each benchmark; silent on all ranks but the first."""

    def __init__(self, is_shown: bool, console: Console | None = None) -> None:
        self._console = console or Console()
        self._is_shown = is_shown
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(), console=self._console, disable=not (is_shown and self._console.is_terminal),
        )  # fmt: skip
        self._task = self._bar.add_task("", figures="", visible=False)
        self._name, self._total, self._done, self._right, self._fresh, self._tokens = "", 0, 0, 0, 0, 0
        self._start = time.monotonic()

    def __enter__(self) -> "EvalProgress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def message(self, text: str) -> None:
        if self._is_shown:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def start(self, benchmark: str, total: int) -> None:
        """A benchmark of `total` samples begins."""
        self._name, self._total, self._done, self._right, self._fresh, self._tokens = benchmark, total, 0, 0, 0, 0
        self._start = time.monotonic()
        self._bar.reset(self._task, description=benchmark, total=total, figures="", visible=True)

    def advance(self, samples: int, right: int, tokens: int, is_fresh: bool = True) -> None:
        """A batch is done; `is_fresh` is False for what an earlier run left behind."""
        self._done, self._right = self._done + samples, self._right + right
        if is_fresh:
            self._fresh, self._tokens = self._fresh + samples, self._tokens + tokens
        seconds = max(1e-9, time.monotonic() - self._start)
        figures = f"accuracy {self._right / max(1, self._done):.1%}, {self._tokens / seconds:,.0f} tokens/s"
        self._bar.update(self._task, completed=self._done, figures=figures)
        if is_fresh and not self._console.is_terminal:
            left = seconds / self._fresh * (self._total - self._done)
            self.message(f"{self._name}: {self._done}/{self._total} samples, {figures}, {left:,.0f} s left")
