"""Scores of tiny reward models against transformers' own forward of each text alone, and what is refused."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    XLNetConfig,
)

from rlhf.config.model import ModelConfig
from rlhf.data.errors import DataError
from rlhf.models.embedded import resolve_model_path
from rlhf.models.reward_model import (
    RewardModel,
    RewardModelError,
    Row,
    _absent_tokens,
    check_reward_model,
    padded_batches,
)
from rlhf.models.self_check import UnsupportedArchitecture

TOLERANCE = 1e-5  # float32 rounding of scores of order 1, in another order of summation
VOCABULARY = 49_152
SIZES = dict(vocab_size=VOCABULARY, num_labels=1, initializer_range=0.2, bos_token_id=1, eos_token_id=2, pad_token_id=2)
LAYERS = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
CONFIGS = {
    "llama": lambda **c: LlamaConfig(**SIZES | LAYERS | dict(max_position_embeddings=256) | c),
    "gemma2": lambda: Gemma2Config(**SIZES, **LAYERS, num_key_value_heads=2, head_dim=16, sliding_window=4),
    "gpt2": lambda: GPT2Config(**SIZES, n_embd=32, n_layer=2, n_head=4),
    "bert": lambda: BertConfig(**SIZES, **LAYERS),
    "xlnet": lambda: XLNetConfig(**SIZES, d_model=32, n_layer=2, n_head=4, d_inner=48),
}
# the turn's end is the last token, and pad
ENDS_IN_PAD = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
ROWS: list[Row] = [
    ("What is 2 + 3?", "It is 5."),
    ("What is 2 + 3?", ""),
    [
        {"role": "system", "content": "You add."},
        {"role": "user", "content": "Add 1 and 2, then 3."},
        {"role": "assistant", "content": "1 + 2 = 3, and 3 + 3 = 6."},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Yes, it is 6. " * 6},
    ],
    ("Say <|im_end|>.", "<|im_end|><|im_end|>"),
    ("What is 7?", "7, " * 20),
]


def save_reward_model(folder: Path, config: PreTrainedConfig | None = None, chat_template: str | None = "") -> str:
    """A tiny classifier of `config` with a seeded head. `chat_template`: empty for the demo tokenizer's own."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_model_path("embedded:smollm2-135m-instruct"))
    if chat_template != "":
        tokenizer.chat_template = chat_template
    torch.manual_seed(1)
    AutoModelForSequenceClassification.from_config(config or CONFIGS["llama"]()).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def load(path: str, **changes) -> RewardModel:
    return RewardModel(path, device="cpu", **changes)


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory) -> RewardModel:
    return load(save_reward_model(tmp_path_factory.mktemp("llama")))


def conversation(row: Row) -> list[dict[str, str]]:
    if not isinstance(row, tuple):
        return row
    return [{"role": "user", "content": row[0]}, {"role": "assistant", "content": row[1]}]


def reference(path: str, token_ids: list[list[int]]) -> list[float]:
    """Each text alone by transformers; without a pad token in the config it reads at the last token."""
    # sdpa, the usual choice, does not cap Gemma 2's attention scores
    model = AutoModelForSequenceClassification.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    model.config.pad_token_id = None
    with torch.no_grad():
        return [model(torch.tensor([ids])).logits.item() for ids in token_ids]


def chat_ids(path: str, rows: list[Row]) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(path)
    texts = [tokenizer.apply_chat_template(conversation(row), tokenize=False) for row in rows]
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


@pytest.mark.parametrize("token_budget", [1, 100, 16_384])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "bert"])
def test_scores_are_those_of_each_text_alone_in_any_batch(tmp_path, family, token_budget):
    path = save_reward_model(tmp_path, CONFIGS[family]())
    model = load(path, token_budget=token_budget)
    check_reward_model(ModelConfig(path=path))
    expected = reference(path, chat_ids(path, ROWS))
    assert len({round(score, 3) for score in expected}) == len(ROWS), "equal scores would hide a wrong order"
    assert model.score(ROWS) == pytest.approx(expected, rel=0, abs=TOLERANCE)
    assert model.score(ROWS[::-1]) == pytest.approx(expected[::-1], rel=0, abs=TOLERANCE)
    assert [model.score([row])[0] for row in ROWS] == pytest.approx(expected, rel=0, abs=TOLERANCE)
    assert model.score([]) == [] and model.truncated == 0


@pytest.mark.parametrize("pad", [None, 2])
def test_texts_that_end_in_the_pad_token_and_a_config_without_one(tmp_path, pad):
    path = save_reward_model(tmp_path, CONFIGS["llama"](pad_token_id=pad), ENDS_IN_PAD)
    token_ids = chat_ids(path, ROWS)
    assert all(ids[-1] == 2 for ids in token_ids)
    expected = reference(path, token_ids)
    assert load(path).score(ROWS) == pytest.approx(expected, rel=0, abs=TOLERANCE)
    # what transformers makes of them in its own way
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    longest = max(map(len, token_ids))
    padded_BS = torch.tensor([ids + [2] * (longest - len(ids)) for ids in token_ids])
    mask_BS = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in token_ids])
    if pad is None:
        with pytest.raises(ValueError, match="no padding token"):
            model(padded_BS, attention_mask=mask_BS)
    else:
        with torch.no_grad():
            usual_B = model(padded_BS, attention_mask=mask_BS).logits.squeeze(-1)
        assert bool(((usual_B - torch.tensor(expected)).abs() > 0.01).all())


def test_without_a_chat_template_a_pair_is_one_plain_text(tmp_path):
    path = save_reward_model(tmp_path, chat_template=None)
    pairs = [("2 + 3 = ", "5"), ("2 + 3 = ", "six, or so"), ("", "7")]
    tokenizer = AutoTokenizer.from_pretrained(path)
    expected = reference(path, [tokenizer(prompt + answer)["input_ids"] for prompt, answer in pairs])
    assert load(path).score(pairs) == pytest.approx(expected, rel=0, abs=TOLERANCE)
    with pytest.raises(DataError, match=r"row 1: is a conversation, and the tokenizer of .* has no chat template"):
        load(path).score([pairs[0], conversation(pairs[1])])
    with pytest.raises(DataError, match="row 0: the tokenizer makes no tokens"):
        load(path).score([("", "")])


def test_the_head_of_a_bfloat16_model_computes_in_float32(tmp_path):
    path = save_reward_model(tmp_path)
    model = load(path, dtype=torch.bfloat16)
    plain = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.bfloat16).eval()
    expected = []
    with torch.no_grad():
        for ids in chat_ids(path, ROWS):
            hidden_D = plain.model(torch.tensor([ids])).last_hidden_state[0, -1]
            expected.append(float(hidden_D.float() @ plain.score.weight[0].float()))
    found = [model.score([row])[0] for row in ROWS]
    assert found == pytest.approx(expected, rel=0, abs=TOLERANCE)
    assert any(score != float(torch.tensor(score).bfloat16()) for score in found)
    # in a batch the backbone rounds otherwise, to 8 bits
    assert model.score(ROWS) == pytest.approx(found, rel=0, abs=0.05)


def test_of_an_overlong_text_the_end_counts_behind_its_first_token(tmp_path):
    path = save_reward_model(tmp_path, CONFIGS["llama"](max_position_embeddings=40))
    model = load(path)
    token_ids = chat_ids(path, ROWS)
    too_long = [ids for ids in token_ids if len(ids) > 40]
    assert model.longest == 40 and len(too_long) == 3 and all(ids[0] == 1 for ids in too_long)
    cut = [ids if len(ids) <= 40 else [1, *ids[-39:]] for ids in token_ids]
    assert model.score(ROWS) == pytest.approx(reference(path, cut), rel=0, abs=TOLERANCE)
    assert model.truncated == 3
    # the tokenizer's limit counts where it is the smaller one
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | dict(model_max_length=30)))
    assert load(path).longest == 30


def test_a_text_that_holds_the_whole_vocabulary_is_scored_too(tmp_path):
    path = save_reward_model(tmp_path)
    model = load(path)
    # as of a model with a small vocabulary: no token is left to pad with
    row = [2, 0, 1, 2]
    assert model._forward([row], _absent_tokens([row], 3)[0]) == pytest.approx(
        reference(path, [row]), rel=0, abs=TOLERANCE
    )


def test_batches_hold_every_text_once_within_the_budget():
    generator = torch.Generator().manual_seed(0)
    for budget in (1, 7, 64, 1000):
        lengths = torch.randint(1, 40, (50,), generator=generator).tolist()
        batches = padded_batches(lengths, budget)
        assert sorted(index for batch in batches for index in batch) == list(range(50))
        assert all(len(b) == 1 or len(b) * max(lengths[i] for i in b) <= budget for b in batches)
        longest = [max(lengths[i] for i in batch) for batch in batches]
        assert longest == sorted(longest, reverse=True)
        # a text opens a batch only where it would not fit the one before, or be a quarter of padding there
        for before, after in pairwise(batches):
            padded, text = max(lengths[i] for i in before), max(lengths[i] for i in after)
            assert (len(before) + 1) * padded > budget or text < 0.75 * padded
        assert all(lengths[i] >= 0.75 * max(lengths[j] for j in b) for b in batches for i in b)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ([{"role": "user", "content": "Hi"}], "row 1: the last message is from 'user': the answer to score is missing"),
        ([{"role": "judge", "content": "Hi"}], "row 1, message 0: role is 'judge'"),
        ([], "row 1: the conversation has no messages"),
        (("", "5"), "row 1, message 0: content is empty"),
    ],
)
def test_a_malformed_row_is_named(reward_model, row, said):
    with pytest.raises(DataError, match=said):
        reward_model.score([ROWS[0], row])


def test_a_conversation_that_the_template_refuses_is_named(tmp_path):
    refusing = "{% if messages | length > 2 %}{{ raise_exception('two messages at most') }}{% endif %}" + ENDS_IN_PAD
    model = load(save_reward_model(tmp_path, chat_template=refusing))
    with pytest.raises(DataError, match=r"here: the chat template of .* does not accept it: two messages at most"):
        model.score(ROWS[1:3], ["there", "here"])


def test_a_score_that_is_no_number_is_an_error_with_its_row(tmp_path):
    model = load(save_reward_model(tmp_path))
    word = model.tokenizer(" seven")["input_ids"]
    with torch.no_grad():
        model.model.model.embed_tokens.weight[word] = torch.nan
    assert model.score(ROWS[:1])
    with pytest.raises(RewardModelError, match=r"question q:3: the reward model .* gives the score nan"):
        model.score([ROWS[0], ("How many?", "It is seven.")], ["question q:2", "question q:3"])


@pytest.mark.parametrize("labels", [2, 3])
def test_other_label_counts_are_refused(tmp_path, labels):
    path = save_reward_model(tmp_path, CONFIGS["llama"](num_labels=labels))
    said = rf"{path} is no reward model: it has {labels} labels"
    with pytest.raises(RewardModelError, match=said):
        load(path)
    with pytest.raises(RewardModelError, match=said):
        check_reward_model(ModelConfig(path=path))


def test_a_policy_is_no_reward_model():
    with pytest.raises(RewardModelError, match=r"embedded:smollm2.* 2 labels .*, LlamaForCausalLM\)"):
        load("embedded:smollm2-135m-instruct")


def test_a_head_that_the_checkpoint_does_not_have_is_refused(tmp_path):
    path = save_reward_model(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(path)
    weights = model.state_dict()
    weights["value_head.weight"] = weights.pop("score.weight")
    model.save_pretrained(path, state_dict=weights)
    said = r"no weights for score.weight, so .* noise; .* without a place: value_head.weight"
    with pytest.raises(RewardModelError, match=said):
        load(path)
    with pytest.raises(RewardModelError, match=said):
        check_reward_model(ModelConfig(path=path))


def test_a_head_of_another_shape_is_refused(tmp_path):
    path = save_reward_model(tmp_path, CONFIGS["llama"](num_labels=3))
    config = json.loads((tmp_path / "config.json").read_text())
    labels = dict(id2label={"0": "LABEL_0"}, label2id={"LABEL_0": 0})
    (tmp_path / "config.json").write_text(json.dumps(config | labels))
    with pytest.raises(RewardModelError, match=r"no weights for score.weight"):
        load(path)
    with pytest.raises(RewardModelError, match=r"no weights for score.weight"):
        check_reward_model(ModelConfig(path=path))


def test_a_model_that_reads_its_score_from_the_padding_is_refused(tmp_path):
    path = save_reward_model(tmp_path, CONFIGS["xlnet"]())
    with pytest.raises(
        UnsupportedArchitecture, match=r"XLNetForSequenceClassification .* padded with one token and .* with another"
    ):
        load(path)


def test_a_budget_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="token_budget must be at least 1, got 0"):
        load(str(tmp_path), token_budget=0)
