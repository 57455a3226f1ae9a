"""Preferences are mined batch by batch: an interrupted run goes on to the same file, which the trainer reads."""

import json
from pathlib import Path

import pytest

from rlhf.config.data import PreferencesConfig
from rlhf.config.mining import MiningConfig
from rlhf.data.preference_source import load_preferences
from rlhf.models.loading import load_tokenizer
from rlhf.trainers.mining import mine
from tests.tiny_runs import save_tiny_model, tiny_config


@pytest.mark.slow
def test_interrupted_and_resumed(tmp_path, capsys):
    model = save_tiny_model(tmp_path / "model")
    tiny = tiny_config(model).model_dump()
    sections = {name: tiny[name] for name in ("model", "data", "rewards", "engine", "sampling")}

    def config(name: str) -> MiningConfig:
        return MiningConfig.model_validate(sections | {
            "run": {"folder": str(tmp_path), "name": name}, "prompts": 10, "prompts_per_batch": 4,
            "pairs": {"keep_truncated": True, "strategy": "all", "max_per_prompt": 3},
        })  # fmt: skip

    straight = mine(config("straight")).read_text()
    assert "40 completions" in capsys.readouterr().out
    interrupted = mine(config("interrupted"))
    # as a kill after the first batch would leave it
    for lost in [interrupted, *sorted((interrupted.parent / "batches").glob("*.json"))[1:]]:
        Path(lost).unlink()
    assert mine(config("interrupted")).read_text() == straight
    rows = [json.loads(line) for line in straight.splitlines()]
    assert len({row["id"] for row in rows}) > 5 and all(row["chosen"] != row["rejected"] for row in rows)
    preferences = PreferencesConfig(path=str(interrupted))
    source = load_preferences(preferences, load_tokenizer(tiny_config(model).model), 64)
    assert len(source) == len(rows) and source[0][0].text == rows[0]["chosen"][0]["content"]
