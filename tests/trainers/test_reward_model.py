"""Training a reward model on a tiny backbone: what is new, the scores of what is exported, its use as a reward."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rlhf.config.rewards import RewardsConfig
from rlhf.data.errors import DataError
from rlhf.data.types import Prompt, Sample
from rlhf.models.reward_model import RewardModel, RewardModelError
from rlhf.rewards import RewardScorer
from rlhf.trainers import reward_model
from rlhf.trainers.stage import SectionOptimizer
from rlhf.training.statistics import wilson_interval
from tests.models.test_reward_model import ENDS_IN_PAD
from tests.processes import ROOT, output_of, start
from tests.tiny_runs import save_tiny_model
from tests.trainers.tiny_stages import tiny_reward_model

USER = {"role": "user", "content": "What is 12 + 7?"}


@pytest.fixture(scope="module")
def model_path(tmp_path_factory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


def conversation(prompt: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


@pytest.mark.parametrize("lora", [None, {"rank": 4}], ids=["whole", "adapters"])
@pytest.mark.parametrize("template", ["", ENDS_IN_PAD], ids=["own template", "ends in pad"])
def test_the_exported_model_scores_as_the_trained_one(template, lora, model_path, tmp_path, monkeypatch):
    model = {"path": model_path, "dtype": "float32", "lora": lora}
    if template:
        (tmp_path / "template.jinja").write_text(template)
        model["chat_template"] = str(tmp_path / "template.jinja")
    exported, trained = reward_model.export, {}

    def watched(model, tokenizer, *rest, **named):
        model.eval()
        for answer in ("19", "The answer is 18."):
            ids = tokenizer.apply_chat_template(conversation("What is 12 + 7?", answer), return_dict=False)
            hidden = model.base_model(torch.tensor([ids])) if lora is None else None
            # read at the last token, whatever pad is
            trained[answer] = (
                model.score(hidden.last_hidden_state[0, -1]).item() if hidden is not None
                else _last(model, ids)
            )  # fmt: skip
        return exported(model, tokenizer, *rest, **named)

    monkeypatch.setattr(reward_model, "export", watched)
    run = reward_model.run(tiny_reward_model(model_path, tmp_path, model=model))
    scorer = RewardModel(str(run / "model"), device="cpu")
    scores = scorer.score([("What is 12 + 7?", answer) for answer in trained])
    assert scores == pytest.approx(list(trained.values()), abs=1e-4)
    assert abs(scores[0] - scores[1]) > 1e-3


def _last(model, ids: list[int]) -> float:
    inner = model.get_base_model()
    return inner.score(inner.model(torch.tensor([ids])).last_hidden_state[0, -1]).item()


def test_the_first_loss_is_that_of_the_pairs_and_the_model_learns(model_path, tmp_path):
    """A dataset that wording decides, in TRL's implicit-prompt format."""
    file = tmp_path / "pairs.jsonl"
    rows = [
        {"chosen": conversation(f"Is {n} a number?", "yes"), "rejected": conversation(f"Is {n} a number?", "no")}
        for n in range(200)
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    config = tiny_reward_model(
        model_path, tmp_path, data={"type": "preferences", "path": str(file)},
        training={"steps": 20, "rows_per_step": 8, "rows_per_micro_batch": 4},
    )  # fmt: skip
    run = reward_model.run(config)
    result = json.loads((run / "held_out.json").read_text())
    assert result["accuracy"] == 1.0 and result["n"] == 20
    assert (result["low"], result["high"]) == pytest.approx(wilson_interval(20, 20))
    losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]

    torch.manual_seed(config.run.seed)
    model = AutoModelForSequenceClassification.from_pretrained(model_path, num_labels=1)
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    encoded, _ = reward_model.load_pairs(config, tokenizer)
    gaps = []
    for index in reward_model.ordered(len(encoded), config)[:8]:
        hidden = [model.model(torch.tensor([ids])).last_hidden_state[0, -1] for ids in encoded[index].values()]
        gaps.append(model.score(hidden[0] - hidden[1]))
    assert losses[0] == pytest.approx(-torch.nn.functional.logsigmoid(torch.cat(gaps)).mean().item(), abs=1e-3)
    assert losses[-1] < 0.1


def test_a_checkpoint_without_its_backbone_is_refused(model_path, tmp_path):
    folder = Path(save_tiny_model(tmp_path / "broken"))
    file = folder / "model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if "layers.1" not in k}, file, metadata={"format": "pt"})
    with pytest.raises(RewardModelError, match=r"lacks weights of LlamaFor.* beside its head: model\.layers\.1"):
        reward_model.run(tiny_reward_model(str(folder), tmp_path))


def test_equal_tokens_are_no_preference(model_path, tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps({"prompt": "2 + 2?", "chosen": "4", "rejected": "4"}))
    config = tiny_reward_model(
        model_path, tmp_path, data={"type": "preferences", "path": str(file)},
        evaluation={"data": {"path": str(file)}},
    )  # fmt: skip
    with pytest.raises(DataError, match=r"pairs\.jsonl, line 1.*are the same"):
        reward_model.run(config)


@pytest.fixture(scope="module")
def trained(model_path, tmp_path_factory) -> str:
    return str(reward_model.run(tiny_reward_model(model_path, tmp_path_factory.mktemp("runs"))) / "model")


def sample(index: int, text: str, prompt="What is 12 + 7?", reason="stop") -> Sample:
    owner = Prompt(f"p{index}", (1, 2), prompt, {"answer": "19"}, "arithmetic")
    return Sample(owner, 0, (5,), (-1.0,), reason, 0, 0, text=text)


def test_it_rewards_completions(trained):
    functions = [
        {"type": "reward_model", "path": trained, "dtype": "float32", "weight": 2.0, "token_budget": 120},
        {"type": "correctness"},
    ]
    system = {"role": "system", "content": "You add."}
    samples = [
        sample(0, "19"),
        sample(1, "20"),
        sample(2, "19", [system, USER]),
        sample(3, " 19", [USER, {"role": "assistant", "content": "It is"}]),
        sample(4, "The answer is", reason="length"),
    ]
    expected = RewardModel(trained, device="cpu").score([
        ("What is 12 + 7?", "19"),
        ("What is 12 + 7?", "20"),
        [system, USER, {"role": "assistant", "content": "19"}],
        [USER, {"role": "assistant", "content": "It is 19"}],
        ("What is 12 + 7?", "The answer is"),
    ])  # fmt: skip
    with RewardScorer(RewardsConfig(functions=functions)) as scorer:
        scored = scorer.score(samples)
    assert [each.rewards["reward_model"] for each in scored] == pytest.approx(expected, abs=1e-5)
    assert scored[0].reward == pytest.approx(2 * expected[0] + 1, abs=1e-5)
    assert scored[1].reward == pytest.approx(2 * expected[1], abs=1e-5)


def test_what_is_no_reward_model_is_refused_when_the_scorer_is_made(model_path):
    with pytest.raises(RewardModelError, match="is no reward model: it has 2 labels"):
        RewardScorer(RewardsConfig(functions=[{"type": "reward_model", "path": model_path}]))


@pytest.mark.slow
def test_the_stages_follow_each_other_as_programs(model_path, tmp_path):
    """`recipes/sft.py`, then `recipes/reward_model.py` on its model, with the shipped configurations."""
    common = ["--run.folder", tmp_path, "--training.steps", "3", "--model.dtype", "float32", "--checkpoint.every", "2"]
    config = ROOT / "configs/sft/demo_arithmetic.yaml"
    printed = output_of(
        start(ROOT / "recipes/sft.py", "--config", config, *common, "--model.path", model_path,
              "--evaluation.examples", "10")
    )  # fmt: skip
    assert "held out, step 3: loss" in printed
    config = ROOT / "configs/reward_model/demo_arithmetic.yaml"
    printed = output_of(
        start(ROOT / "recipes/reward_model.py", "--config", config, *common, "--model.path", tmp_path / "sft/model",
              "--evaluation.pairs", "10")
    )  # fmt: skip
    assert "held-out pairs:" in printed and "of 10 in the right order" in printed
    (score,) = RewardModel(str(tmp_path / "rm/model"), device="cpu").score([("What is 12 + 7?", "19")])
    with RewardScorer(
        RewardsConfig(functions=[{"type": "reward_model", "path": str(tmp_path / "rm/model"), "dtype": "float32"}])
    ) as scorer:
        assert scorer.score([sample(0, "19")])[0].reward == pytest.approx(score, abs=1e-5)


def test_the_head_has_a_learning_rate_of_its_own(model_path, tmp_path):
    for lora in (None, {"rank": 4}):
        model = {"path": model_path, "dtype": "float32", "lora": lora}
        config = tiny_reward_model(model_path, tmp_path, model=model, head_lr=0.5)
        classifier = reward_model.load_classifier(config)
        overrides = reward_model.head_overrides(classifier, config.head_lr)
        optimizer = SectionOptimizer()(classifier, section=config.optimizer, seed=0, overrides=overrides)
        rates = {
            name: group["lr"] for group in optimizer.param_groups for name in group["param_names"]
        }  # fmt: skip
        assert {name for name, lr in rates.items() if lr == 0.5} == {name for name in rates if "score" in name}
        assert {lr for name, lr in rates.items() if "score" not in name} == {1e-2} and len(rates) > 10
