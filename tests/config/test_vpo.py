"""What a preference recipe refuses and fills in."""

import pytest
import yaml

from rlhf.config.loading import parse_config, to_yaml
from rlhf.config.sources import ConfigError
from rlhf.config.vpo import VPOConfig

ONLINE = {"model": {"path": "m"}, "data": {"type": "arithmetic"}}
OFFLINE = {
    "model": {"path": "m"}, "data": {"type": "preferences", "path": "pairs.jsonl"}, "evaluation": {"prompts": 0},
    "algorithm": {"mode": "offline"},
}  # fmt: skip


@pytest.fixture
def load(tmp_path):
    def make(content, *flags):
        file = tmp_path / "run.yaml"
        file.write_text(yaml.safe_dump(content))
        return parse_config(VPOConfig, ["--config", str(file), *flags])

    return make


def test_the_mode_decides_what_is_not_given(load):
    online, offline = load(ONLINE).algorithm, load(OFFLINE).algorithm
    assert (online.alpha, online.direction, online.calibration) == (1e-3, 1, "ref")
    assert (offline.alpha, offline.direction, offline.calibration) == (5e-3, -1, "chosen")
    assert online.needs_reference_model and not offline.needs_reference_model
    assert load(OFFLINE).completions_per_prompt == 2


def test_presets(load):
    assert load(ONLINE, "--algorithm.preset", "dpo").algorithm.alpha == 0
    ipo = load(ONLINE, "--algorithm.preset", "ipo").algorithm
    assert (ipo.loss_type, ipo.alpha) == ("ipo", 0)
    # XPO's coefficient has no beta in front
    xpo = load(ONLINE, "--algorithm.preset", "xpo", "--algorithm.beta", "0.05").algorithm
    assert xpo.alpha * xpo.beta == pytest.approx(1e-5) and xpo.calibration == "ref"


def test_round_trip(load, tmp_path):
    config = load(OFFLINE, "--algorithm.preset", "xpo", "--algorithm.calibration", "rejected")
    file = tmp_path / "again.yaml"
    file.write_text(to_yaml(config))
    assert parse_config(VPOConfig, ["--config", str(file)]) == config


@pytest.mark.parametrize(
    ("base", "flags", "told"),
    [
        (ONLINE, ["--algorithm.mode", "offline"], "set data.type to preferences, or algorithm.mode to online"),
        (OFFLINE, ["--algorithm.mode", "online"], "set algorithm.mode to offline"),
        (OFFLINE, ["--algorithm.calibration", "ref"], "calibration = ref needs rollouts"),
        (OFFLINE, ["--algorithm.labels", "soft_bt"], "labels = soft_bt needs rewards"),
        (OFFLINE, ["--algorithm.replay", "all"], "replay = all is for mode online"),
        (OFFLINE, ["--evaluation.prompts", "10"], "evaluation.data"),
        (ONLINE, ["--algorithm.preset", "dpo", "--algorithm.alpha", "1e-3"], "set alpha to 0, or preset to vpo"),
        (ONLINE, ["--algorithm.beta", "0"], "algorithm.beta"),
        (ONLINE, ["--algorithm.alpha", "-1"], "algorithm.alpha"),
        (ONLINE, ["--algorithm.sign", "0"], "algorithm.sign"),
        (ONLINE, ["--sampling.samples_per_prompt", "1"], "makes no pairs"),
        (ONLINE, ["--sampling.temperature", "0"], "sampling.temperature"),
        (ONLINE, ["--algorithm.preset", "ipo", "--algorithm.labels", "soft_bt"], "ipo takes hard labels"),
        (ONLINE | {"model": {"path": "m", "lora": {"rank": 4, "dropout": 0.1}}}, [], "model.lora.dropout"),
        (ONLINE | {"model": {"path": "m", "lora": {"rank": 4}}}, ["--algorithm.reference", "iteration"], "base"),
    ],
)  # fmt: skip
def test_what_is_refused(load, base, flags, told):
    with pytest.raises(ConfigError) as caught:
        load(base, *flags)
    assert told in "\n".join(caught.value.problems)
