"""Samples to score, and the case sets outside the project (RLHF_TEST_DATA)."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf.data.types import Prompt, Sample

DATA = Path(os.environ.get("RLHF_TEST_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))


@pytest.fixture(scope="session")
def rows() -> Callable[[str], list[dict[str, Any]]]:
    """The rows of a JSON-lines file of the test data; skips where it is absent."""

    def read(name: str) -> list[dict[str, Any]]:
        path = DATA / name
        if not path.is_file():
            pytest.skip(f"there is no {path}: set RLHF_TEST_DATA to the folder of the grading cases")
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    return read


@pytest.fixture
def make_sample() -> Callable[..., Sample]:
    """A sample with `text` and the gold `answer`; token ids are the text's code points."""

    def make(text: str, answer: Any = "5", index: int = 0, messages: bool = False, **prompt: Any) -> Sample:
        question = "What is 2 + 3?"
        wrapped = [{"role": "user", "content": question}] if messages else question
        columns = prompt.pop("columns", {"answer": answer})
        ids = tuple(map(ord, text)) or (0,)
        return Sample(
            prompt=Prompt(prompt.pop("id", "sums:7"), (1, 2), wrapped, columns, **prompt),
            index=index,
            completion_ids=ids,
            logps=(-1.0,) * len(ids),
            finish_reason="stop",
            policy_version=0,
            seed=0,
            text=text,
        )

    return make
