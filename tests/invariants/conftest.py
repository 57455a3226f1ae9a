"""The tiny checkpoint that the invariants are tested on."""

import pytest

from tests.tiny_runs import save_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "model")
