"""A preference dataset by index: both completions of a row as samples, what is left out, what makes it another one."""

import json
import logging
import math

import pytest

from rlhf.config.data import PreferencesConfig
from rlhf.data.errors import DataError
from rlhf.data.preference_source import load_preferences

ROWS = [
    {"prompt": "One and one make", "chosen": " two.", "rejected": " three."},
    {"prompt": "A cat", "chosen": " sleeps, and then it sleeps again until the evening.", "rejected": " flies."},
    {"prompt": [{"role": "user", "content": "2 + 2?"}], "chosen": [{"role": "assistant", "content": "4"}],
     "rejected": [{"role": "assistant", "content": "5"}]},
]  # fmt: skip


@pytest.fixture
def load(tmp_path, tokenizer):
    def make(rows, limit=32, **settings):
        file = tmp_path / "pairs.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return load_preferences(PreferencesConfig(path=str(file), **settings), tokenizer, limit)

    return make


def test_samples(load, tokenizer):
    source = load(ROWS)
    assert len(source) == 3
    chosen, rejected = source[0]
    assert chosen.prompt is rejected.prompt and chosen.prompt.id.endswith("-pairs:0")
    assert (chosen.index, chosen.reward, rejected.index, rejected.reward) == (0, 1.0, 1, 0.0)
    assert tokenizer.decode(chosen.completion_ids) == " two." + tokenizer.eos_token
    assert (chosen.text, rejected.text) == (" two.", " three.")
    assert len(chosen.logps) == len(chosen.completion_ids) and all(map(math.isnan, chosen.logps))
    chat = source[2][0]
    assert chat.text == "4" and tokenizer.decode(chat.completion_ids) == "4<|im_end|>"


def test_long_completions_are_left_out_and_told(load, caplog):
    with caplog.at_level(logging.WARNING):
        source = load(ROWS, limit=6)
    assert [source[index][0].text for index in range(len(source))] == [" two.", "4"]
    assert "left out 1 of 3 pairs" in caplog.text and "sampling.max_tokens = 6" in caplog.text
    with pytest.raises(DataError, match="all 3 pairs are above"):
        load(ROWS, limit=1)


def test_the_fingerprint_is_of_tokens(load):
    one = load(ROWS).fingerprint
    assert load(ROWS).fingerprint == one
    assert load([ROWS[0] | {"rejected": " four."}, *ROWS[1:]]).fingerprint != one
    assert load(ROWS[:2]).fingerprint != one


def test_a_bad_row_is_named(load):
    with pytest.raises(DataError, match=r"pairs.jsonl, line 2 \(row 1\): chosen and rejected are the same"):
        load([ROWS[0], {"prompt": "x", "chosen": " y", "rejected": " y"}])
