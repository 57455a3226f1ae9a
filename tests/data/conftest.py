"""Tokenizers: the real one of the demo checkpoint, and a small one that adds special tokens on both sides."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

GEMMA_LIKE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %} {{ message['role'] }} {{ message['content'] }}"
    "{% endfor %}{% if add_generation_prompt %} assistant{% endif %}"
)


@pytest.fixture(scope="session")
def tokenizer():
    from transformers import AutoTokenizer

    from rlhf.models.embedded import resolve_model_path

    return AutoTokenizer.from_pretrained(resolve_model_path("embedded:smollm2-135m-instruct"))


@pytest.fixture
def small_tokenizer():
    """Words 3, 4, ... between <s> (1) and </s> (2), as some checkpoints' tokenizers do; no chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "</s>", "one", "two", "three", "user", "assistant"]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture
def gemma_like_tokenizer(small_tokenizer):
    """The small tokenizer with a template that writes <s> itself and refuses system messages."""
    small_tokenizer.chat_template = GEMMA_LIKE
    return small_tokenizer


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., str]:
    def write(rows: list[Any], name: str = "set/train.jsonl") -> str:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
        return str(file)

    return write


@pytest.fixture(scope="session")
def gsm8k() -> Path:
    """GSM8K's training file under $RLHF_TEST_DATA."""
    root = Path(__file__).parents[2]
    file = Path(os.environ.get("RLHF_TEST_DATA", root / "../shared/data")) / "gsm8k" / "train.jsonl"
    if not file.exists():
        pytest.skip(f"needs GSM8K: there is no {file} (set RLHF_TEST_DATA)")
    return file
