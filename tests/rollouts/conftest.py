"""Tiny random checkpoints, a tokenizer of 64 words, and prompts, shared by the tests of the engines."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from rlhf.data.types import Prompt
from rlhf.rollouts.engine import Request

VOCABULARY = 64
EOS = 0
END_OF_TURN = 1

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|> {{ m['role'] }} {{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant{% endif %}"
)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return word_tokenizer()


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Word w5 has id 5; eos <eos> has id 0 and is the pad token, the template's end of turn <|im_end|> has id 1."""
    words = {"<eos>": EOS, "<|im_end|>": END_OF_TURN, "<|im_start|>": 2} | {f"w{i}": i for i in range(3, VOCABULARY)}
    inner = Tokenizer(models.WordLevel(words, unk_token="w3"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.add_special_tokens([AddedToken(word, special=True) for word in ("<eos>", "<|im_end|>", "<|im_start|>")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", pad_token="<eos>")
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _shape(**overrides: object) -> dict[str, object]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        # wide enough that the next-token distributions are far from uniform
        "initializer_range": 0.25,
        "bos_token_id": None,
        "eos_token_id": EOS,
        "pad_token_id": EOS,
    } | overrides


def llama(seed: int = 0, **overrides: object) -> LlamaForCausalLM:
    """A random Llama with separate LM head."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**_shape(**{"tie_word_embeddings": False} | overrides))).eval()


def qwen2(seed: int = 0, **overrides: object) -> Qwen2ForCausalLM:
    """A random Qwen2: biases on q, k, v, a tied LM head, and a sliding window of 6 in the second layer."""
    torch.manual_seed(seed)
    sliding = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}
    model = Qwen2ForCausalLM(Qwen2Config(**_shape(**{"tie_word_embeddings": True} | sliding | overrides)))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


MODELS: dict[str, Callable[..., torch.nn.Module]] = {"llama": llama, "qwen2": qwen2}


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of the tiny models by name."""
    folders = {}
    for name, make in MODELS.items():
        folders[name] = tmp_path_factory.mktemp(name)
        make().save_pretrained(folders[name])
    return folders


def prompts(lengths: list[int], seed: int = 0) -> list[Prompt]:
    """Prompts of random words; ids may hit eos, which is also the pad token."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for number, length in enumerate(lengths):
        ids = torch.randint(0, VOCABULARY, (length,), generator=generator).tolist()
        made.append(Prompt(id=f"test:{number}", token_ids=tuple(ids), text=""))
    return made


def requests(made: list[Prompt], samples: int = 1, run_seed: int = 0) -> list[Request]:
    """One request for each prompt and sample with seeds that do not depend on the order."""
    return [
        Request(prompt, index, 1000 * run_seed + 10 * n + index)
        for n, prompt in enumerate(made)
        for index in range(samples)
    ]
