"""Order and conditions of the whole suite."""

import shutil

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests run first, so that a simple mistake shows early; tests that need a GPU say so where there is none."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)
    if shutil.which("nvidia-smi") is None:
        for item in items:
            if item.get_closest_marker("gpu") is not None:
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU (there is no nvidia-smi)"))
