"""Prompts and verdicts equal those of lm-evaluation-harness 0.4.13, which builds and judges its own here.

The task is the harness's stock gsm8k with the two local files in place of the hub's. `RLHF_LM_EVAL_ITEMS=50` makes the
slow test run that many questions in both settings with the stock 256 new tokens, and prints the harness's figures.
"""

import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eval.few_shot import Shots
from eval.lm_eval_gsm8k import lm_eval_gsm8k
from eval.questions import Question
from eval.templates import build_template, cut_at_stop_string
from rlhf.config.extras import from_checkout

lm_eval = pytest.importorskip("lm_eval", reason=f"needs lm-eval; {from_checkout('dev')}")
DATA = Path(os.environ.get("RLHF_TEST_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
ITEMS = 50
TASK = "gsm8k_local"


@pytest.fixture(scope="module")
def folder() -> Path:
    """Where GSM8K's train.jsonl and test.jsonl are."""
    folder = DATA / "gsm8k"
    if not (folder / "test.jsonl").is_file():
        pytest.skip(f"there is no {folder / 'test.jsonl'}: set RLHF_TEST_DATA to the folder that holds gsm8k/")
    return folder.resolve()


@pytest.fixture(scope="module")
def questions(folder):
    def read(split: str) -> list[Question]:
        rows = [json.loads(line) for line in (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
        return [
            Question(
                f"gsm8k-{split}:{i}",
                row["question"],
                row["answer"].rpartition("#### ")[2],
                columns={"solution": row["answer"]},
            )
            for i, row in enumerate(rows)
        ]

    return {split: read(split) for split in ("train", "test")}


@pytest.fixture(scope="module")
def task_manager(folder, tmp_path_factory):
    """Knows one task: the installed stock gsm8k on the local files."""
    import yaml
    from lm_eval.tasks import TaskManager

    place = tmp_path_factory.mktemp("lm_eval")
    config = yaml.safe_load((Path(lm_eval.__file__).parent / "tasks/gsm8k/gsm8k.yaml").read_text())
    del config["dataset_name"], config["tag"]
    config |= {
        "task": TASK,
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {split: str(folder / f"{split}.jsonl") for split in ("train", "test")},
            "cache_dir": str(place / "cache"),
        },
    }
    (place / f"{TASK}.yaml").write_text(yaml.safe_dump(config))
    return TaskManager(include_path=str(place), include_defaults=False)


@pytest.fixture(scope="module")
def task(task_manager):
    return task_manager.load([TASK])["tasks"][TASK]


@pytest.fixture(scope="module")
def model_path() -> str:
    from rlhf.models.embedded import resolve_model_path

    return resolve_model_path("embedded:smollm2-135m-instruct")


@pytest.fixture(scope="module")
def tokenizer(model_path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_path)


@pytest.fixture(scope="module")
def harness_words(tokenizer):
    """The harness's model class without a model: what turns a conversation into text, and text into ids."""
    from lm_eval.models.huggingface import HFLM

    words = object.__new__(HFLM)
    words.tokenizer, words.backend, words.add_bos_token, words.chat_template_args = tokenizer, "causal", None, {}
    return words


@pytest.mark.parametrize(
    ("name", "shot_count"), [("few-shot", 5), ("few-shot", 0), ("few-shot-chat", 0), ("few-shot-chat", 5)]
)
def test_prompts_are_the_harness_s_token_for_token(task, tokenizer, harness_words, questions, name, shot_count):
    task.set_config("num_fewshot", shot_count)
    task.set_fewshot_seed(1234)
    task.build_all_requests(
        limit=ITEMS,
        apply_chat_template=name == "few-shot-chat",
        fewshot_as_multiturn=name == "few-shot-chat",
        chat_template=harness_words.apply_chat_template,
    )
    template = build_template(name, tokenizer, shots=questions["train"], shot_count=shot_count)
    assert len(task.instances) == ITEMS
    for i, instance in enumerate(task.instances):
        text, how = instance.args
        ids, _ = harness_words.tok_batch_encode([text])
        rendered = template.render(questions["test"][i], i)
        assert rendered.text == text
        assert list(rendered.token_ids) == ids[0].tolist()
        assert rendered.stop_strings == tuple(how["until"])


def test_examples_from_the_evaluated_set_are_the_harness_s(task, questions):
    """Its sampler's second case: pool and evaluated set are one, here with every question a second time."""
    from lm_eval.api.samplers import ContextSampler

    rows = [{"question": q.text, "answer": q.columns["solution"]} for q in questions["test"][:8]]
    sampler = ContextSampler(rows * 2, rnd=1234)
    pool = [
        Question(str(i), row["question"], "", columns={"solution": row["answer"]}) for i, row in enumerate(rows * 2)
    ]
    shots = Shots(pool, 7)
    for question, row in zip(pool, rows * 2, strict=True):
        theirs = [shot["question"] for shot in sampler.sample(7, eval_doc=row)]
        assert [shot.text for shot in shots.before(question, 0)] == theirs


def harness_verdicts(task, completion: str, solution: str) -> dict[str, bool]:
    from lm_eval.api.instance import Instance

    document = {"question": "", "answer": solution}
    instance = Instance(request_type="generate_until", doc=document, arguments=("", {}), idx=0, resps=[completion])
    for chain in task._filters:
        chain.apply([instance])
    return {
        name: bool(task.process_results(document, [found])["exact_match"])
        for name, found in instance.filtered_resps.items()
    }


PIECES = st.sampled_from(
    ["#### ", "####", "-", "$", ",", ".", " ", "\n", "18", "1,800", "$18", "18.", "18.0", "٣", "x"]
)
TEXTS = st.lists(PIECES, max_size=12).map("".join)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(completion=TEXTS, gold=st.sampled_from(["18", "1,800", "-18", "$18", "18.", "18.0"]))
def test_verdicts_are_the_harness_s_on_any_text(task, completion, gold):
    theirs = harness_verdicts(task, completion, f"She has 9 + 9 = <<9+9=18>>18 eggs.\n#### {gold}")
    assert lm_eval_gsm8k(completion, f"anything\n#### {gold}") == theirs
    assert lm_eval_gsm8k(completion, gold) == theirs


@pytest.mark.parametrize(
    ("completion", "strict", "flexible"),
    [
        ("The answer is 18.\n#### 18", True, True),
        ("#### 18 eggs, then #### 20", True, False),
        ("#### $18", False, True),
        ("so $1,800", False, False),
        ("the answer is 18.", False, True),
        ("it costs $18.", False, True),
        ("18.0", False, False),
        ("", False, False),
        ("\\boxed{18}", False, True),
        ("-18", False, False),
    ],
)
def test_verdicts_by_hand(task, completion, strict, flexible):
    expected = {"strict-match": strict, "flexible-extract": flexible}
    assert lm_eval_gsm8k(completion, "18") == expected == harness_verdicts(task, completion, "#### 18")


def test_verdicts_take_linear_time():
    """The harness's own pattern is quadratic here: 0.2 s at 20,000 digits, minutes at this length."""
    assert lm_eval_gsm8k("1" * 1_000_000, "18") == {"strict-match": False, "flexible-extract": False}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shot_count", "items", "max_tokens"), [("few-shot-chat", 0, 20, 128), ("few-shot", 5, 4, 48)]
)
def test_the_real_model_under_the_harness(
    task_manager, model_path, tokenizer, questions, name, shot_count, items, max_tokens, monkeypatch
):
    """The harness generates and judges; its prompts are ours, its verdicts are ours on its completions."""
    from lm_eval.models.huggingface import HFLM

    for variable in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(variable, "1")
    if "RLHF_LM_EVAL_ITEMS" in os.environ:
        items, max_tokens = int(os.environ["RLHF_LM_EVAL_ITEMS"]), 256
    model = HFLM(
        pretrained=model_path, device="cpu", dtype="bfloat16", batch_size=25 if name == "few-shot-chat" else 10
    )
    output = lm_eval.simple_evaluate(
        model=model,
        tasks=[TASK],
        task_manager=task_manager,
        num_fewshot=shot_count,
        limit=items,
        apply_chat_template=name == "few-shot-chat",
        gen_kwargs={"max_gen_toks": max_tokens},
        bootstrap_iters=0,
    )
    template = build_template(name, tokenizer, shots=questions["train"], shot_count=shot_count)
    samples = output["samples"][TASK]
    assert len(samples) == 2 * items
    ours = {"strict-match": [], "flexible-extract": []}
    for sample in samples:
        place = sample["doc_id"]
        question = questions["test"][place]
        rendered = template.render(question, place)
        completion = sample["resps"][0][0]
        assert rendered.text == sample["arguments"][0][0]
        assert cut_at_stop_string(completion, rendered.stop_strings) == completion
        verdict = lm_eval_gsm8k(completion, question.gold)[sample["filter"]]
        assert verdict == bool(sample["exact_match"])
        ours[sample["filter"]].append(verdict)
    for filter_name, verdicts in ours.items():
        theirs = output["results"][TASK][f"exact_match,{filter_name}"]
        assert math.isclose(sum(verdicts) / items, theirs)
        print(f"{name} {shot_count}-shot, {items} items, {filter_name}: {sum(verdicts)}/{items}, harness {theirs:.4f}")
