"""What CAPO's recipe refuses, each with its remedy."""

import pytest

from rlhf.config.capo import CAPOConfig
from rlhf.config.loading import parse_config
from rlhf.config.sources import ConfigError

REQUIRED = ["--model.path", "some/model", "--data.type", "arithmetic"]
CASES = [
    (["--algorithm.curvature.calibrate_steps", "1"], "set calibrate_steps to 2 or more",
     ["--algorithm.curvature.calibrate_steps", "2"]),
    (["--algorithm.curvature.calibrate_steps", "1"], "no moments", ["--algorithm.curvature.step_model", "sgd"]),
    (["--algorithm.curvature.min_objective_shift", "0.01"], "no token would be accepted",
     ["--algorithm.curvature.min_objective_shift", "0"]),
    (["--algorithm.preset", "dr_capo", "--algorithm.curvature.denominator", "accepted"], "denominator to original",
     ["--algorithm.curvature.denominator", "original"]),
    (["--model.attention", "padded"], "set model.attention to packed", ["--model.attention", "packed"]),
    (["--algorithm.curvature.top_k", "0"], "top_k", ["--algorithm.curvature.top_k", "1"]),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "told", "remedy"), CASES)
def test_contradictions_name_their_remedy(flags, told, remedy):
    with pytest.raises(ConfigError) as caught:
        parse_config(CAPOConfig, [*REQUIRED, *flags])
    assert told in "\n".join(caught.value.problems)
    repaired = [value for pair in zip(flags[::2], flags[1::2], strict=True) if pair[0] != remedy[0] for value in pair]
    parse_config(CAPOConfig, [*REQUIRED, *repaired, *remedy])
