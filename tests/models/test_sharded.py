"""The policy under FSDP2 on two real processes."""

from pathlib import Path

import pytest

from tests.processes import run_on_two_ranks


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen2"])  # a tied LM head, and one of its own
def test_sharded_gradients_and_weights_equal_the_whole_policys(checkpoint, family):
    run_on_two_ranks(Path(__file__).with_name("sharded_policy.py"), checkpoint(family))
