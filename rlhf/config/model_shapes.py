"""The sizes of a causal language model that a memory plan needs, found without loading the model."""

import json
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# decoder families with the block that `ModelShape.parameters` counts: gated MLP, RMS norms, grouped-query attention
KNOWN_FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
# `--dry-run` answers in about a second, hub or no hub
HUB_TIMEOUT_S = 1.0


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder with gated MLP and grouped-query attention."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    is_tied: bool
    """The LM head is the embedding."""
    has_qkv_bias: bool = False
    has_qk_norm: bool = False

    @property
    def query_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """The linear maps of one block by module name: (inputs, outputs)."""
        return {
            "q_proj": (self.hidden, self.query_width),
            "k_proj": (self.hidden, self.kv_width),
            "v_proj": (self.hidden, self.kv_width),
            "o_proj": (self.query_width, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    @property
    def block_parameters(self) -> int:
        """Parameters of one block: linear maps, their biases, and norms."""
        count = sum(inputs * outputs for inputs, outputs in self.linears.values()) + 2 * self.hidden
        count += self.query_width + 2 * self.kv_width if self.has_qkv_bias else 0
        return count + (2 * self.head_dim if self.has_qk_norm else 0)

    @property
    def parameters(self) -> int:
        """Parameters of the whole model; a tied LM head counts once."""
        tables = 1 if self.is_tied else 2
        return tables * self.vocabulary * self.hidden + self.layers * self.block_parameters + self.hidden

    def lora_parameters(self, rank: int, targets: str | list[str]) -> int:
        """Parameters of rank-`rank` adapters on `targets` ("all-linear" or module names) in every block."""
        chosen = self.linears if targets == "all-linear" else {n: s for n, s in self.linears.items() if n in targets}
        return self.layers * sum(rank * (inputs + outputs) for inputs, outputs in chosen.values())


class UnknownShape(LookupError):
    """The sizes cannot be told from here; the message says why and what to do."""


def _smollm2_135m() -> ModelShape:
    return ModelShape(576, 30, 9, 3, 64, 1536, 49152, is_tied=True)


# from the config.json that each checkpoint publishes
PUBLISHED: dict[str, ModelShape] = {
    "embedded:smollm2-135m-instruct": _smollm2_135m(),
    "HuggingFaceTB/SmolLM2-135M-Instruct": _smollm2_135m(),
    "Qwen/Qwen2.5-0.5B-Instruct": ModelShape(896, 24, 14, 2, 64, 4864, 151936, is_tied=True, has_qkv_bias=True),
    "Qwen/Qwen2.5-1.5B-Instruct": ModelShape(1536, 28, 12, 2, 128, 8960, 151936, is_tied=True, has_qkv_bias=True),
    "Qwen/Qwen2.5-Math-7B": ModelShape(3584, 28, 28, 4, 128, 18944, 152064, is_tied=False, has_qkv_bias=True),
}


def find_shape(path: str, revision: str | None = None) -> ModelShape:
    """The sizes of the model at `path`: a local folder, a published shape, the hub's cache, or the hub.

    Raises UnknownShape with the reason and the remedy.
    """
    if Path(path).is_dir():
        config = Path(path) / "config.json"
        if not config.is_file():
            raise UnknownShape(f"{path} has no config.json: is it a Hugging Face checkpoint folder?")
        return shape_from_config(json.loads(config.read_text(encoding="utf-8")))
    if path in PUBLISHED:
        return PUBLISHED[path]
    if path.startswith(("embedded:", "/", ".")):
        raise UnknownShape(f"{path} does not exist")
    return shape_from_config(json.loads(_config_from_hub(path, revision)))


def shape_from_config(config: dict[str, Any]) -> ModelShape:
    """The sizes that a checkpoint's config.json states. Raises UnknownShape for a family whose block is built
    differently."""
    family = config.get("model_type")
    if family not in KNOWN_FAMILIES:
        raise UnknownShape(
            f"model_type {family!r} is not among {', '.join(KNOWN_FAMILIES)}: measure the first step instead"
        )
    try:
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        return ModelShape(
            hidden=hidden,
            layers=config["num_hidden_layers"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or hidden // heads,
            intermediate=config["intermediate_size"],
            vocabulary=config["vocab_size"],
            is_tied=config.get("tie_word_embeddings", family in ("smollm3",)),
            has_qkv_bias=family == "qwen2" or config.get("attention_bias", False),
            has_qk_norm=family == "qwen3",
        )
    except KeyError as error:
        raise UnknownShape(f"config.json has no {error.args[0]!r}") from error


def _config_from_hub(path: str, revision: str | None) -> str:
    """The text of config.json from the hub's cache, else from the hub in one quick try (the hub's client would
    retry for 25 s)."""
    from huggingface_hub import constants, get_token, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(path, "config.json", revision=revision)
    except HFValidationError as error:
        raise UnknownShape(f"{path} is neither a folder nor a hub id") from error
    if isinstance(cached, str):
        return Path(cached).read_text(encoding="utf-8")
    if constants.HF_HUB_OFFLINE:
        raise UnknownShape(
            f"{path} is not in the hub's cache and HF_HUB_OFFLINE is set: run `hf download {path}` first"
        )
    token = get_token()
    request = urllib.request.Request(
        hf_hub_url(path, "config.json", revision=revision),
        headers={"Authorization": f"Bearer {token}"} if token else {},
    )
    try:
        with urllib.request.urlopen(request, timeout=HUB_TIMEOUT_S) as answer:
            return answer.read().decode("utf-8")
    except OSError as error:
        raise UnknownShape(
            f"{path}: the hub gave no config.json ({error}); check the name, or run `hf download {path}`"
        ) from error
