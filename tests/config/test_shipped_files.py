"""What the documentation shows and what the repository ships is what the code accepts."""

import re
from pathlib import Path

import pytest

from rlhf.config.algorithm import PRESETS, PolicyGradientConfig
from rlhf.config.grpo import GRPOConfig
from rlhf.config.loading import parse_config

ROOT = Path(__file__).parents[2]
FOLDERS = ("rlhf", "eval", "recipes", "launch", "benchmarks", "configs", "docs")


def test_nothing_is_installed_by_this_project_s_name():
    """In the public index another package has it."""
    files = [*ROOT.glob("*.md"), *(file for folder in FOLDERS for file in (ROOT / folder).rglob("*"))]
    texts = {file: file.read_text(encoding="utf-8") for file in files if file.suffix in (".py", ".md", ".sh", ".yaml")}
    assert len(texts) > 100
    assert [file for file, text in texts.items() if re.search(r"install[^\n]{0,20}\brlhf\b", text)] == []


def test_the_readme_s_example_loads(written):
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    config = parse_config(GRPOConfig, ["--config", written(text), "--algorithm.preset", "dr_grpo"])
    assert config.rewards.functions[0].path == "my_rewards.py:short_and_right"


def test_the_readme_s_reward_is_a_reward():
    (text,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    scope: dict = {}
    exec(compile(text, "README.md", "exec"), scope)
    assert scope["short_and_right"](["q", "q"], ["it is 12", "no"], answer=["12", "7"]) == [1 - 0.008, -0.002]


def test_the_preset_table_is_that_of_the_code():
    page = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:6]] for line in page.splitlines() if line.startswith("| ")]
    table = {row[0]: row[1:] for row in rows if row[0] in PRESETS}
    assert set(table) == set(PRESETS)
    for name, (advantage, loss, importance, denominator) in table.items():
        algorithm = PolicyGradientConfig(preset=name)
        assert (algorithm.advantage, algorithm.loss, algorithm.denominator) == (advantage, loss, denominator)
        assert algorithm.loss == "reinforce" or algorithm.importance == importance


@pytest.mark.parametrize("file", sorted((ROOT / "configs/accelerate").glob("*.yaml")), ids=lambda file: file.stem)
def test_accelerate_reads_its_files(file):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(file))
    assert config.num_processes > 1 and config.mixed_precision == "bf16"
