"""Runs of our recipes as processes of their own, kept in folders: a run that is finished is read, not repeated."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rlhf.training.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0",
    "TOKENIZERS_PARALLELISM": "false",
}


def finished_run(recipe: str, config: Path, folder: Path, name: str, settings: Mapping[str, Any]) -> RunFolder:
    """The folder of `recipes/<recipe>.py` run to its end with `settings` over those of `config`.

    Its checkpoints are removed. It has as many threads as this process; its output is in `<name>.log` beside it. Raises
    subprocess.CalledProcessError where the run fails.
    """
    run = RunFolder(folder / name)
    if (run.path / "report.html").exists():
        return run
    command = [sys.executable, str(ROOT / "recipes" / f"{recipe}.py"), "--config", str(config)]
    for key, value in {"run.folder": folder, "run.name": name, **settings}.items():
        command += [f"--{key}", str(value)]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.log").open("w") as output:
        environment = os.environ | ENVIRONMENT | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        subprocess.run(command, env=environment, stdout=output, stderr=output, check=True)
    # a finished run is not resumed, and its optimizer state is the most of a disk that many runs fill
    shutil.rmtree(run.path / "checkpoints", ignore_errors=True)
    return run
