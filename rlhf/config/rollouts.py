"""How completions are sampled: the engine (by `type`) and the sampling settings, every one explicit."""

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from rlhf.config.section import Section


class SamplingConfig(Section):
    """Sampling settings. Nothing is taken from the checkpoint's generation_config."""

    samples_per_prompt: int = Field(8, ge=1)
    """Completions per prompt (the group size)."""
    max_tokens: int = Field(256, ge=1)
    """Longest completion in tokens; with an environment, of one turn."""
    temperature: float = Field(1.0, ge=0)
    """Softmax temperature; 0 is greedy. The learner scores at the same temperature."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling. Training needs 1: the learner's log-probs have full support."""
    top_k: int = Field(0, ge=0)
    """Keep only the k most likely tokens; 0 is off. Training needs 0."""
    stop_token_ids: list[int] | None = None
    """Tokens that end a completion; none given: the tokenizer's eos and the chat template's end-of-turn."""


class TransformersEngineConfig(Section):
    """Batched decoding with the transformers model itself: deterministic, the reference for tests."""

    type: Literal["transformers"] = "transformers"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the decoder; `auto`: the policy's."""
    max_rows: int = Field(128, ge=1)
    """Completions decoded at once."""


class VllmEngineConfig(Section):
    """vLLM in this process, on CUDA or CPU; weights are updated in place."""

    type: Literal["vllm"] = "vllm"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the engine; `auto`: the policy's."""
    max_model_len: int | None = Field(None, ge=8)
    """Prompt plus completion tokens; none given: the longest that training or evaluation can need."""
    max_num_seqs: int = Field(128, ge=1)
    """Completions decoded at once."""
    gpu_memory_utilization: float = Field(0.4, gt=0, lt=1)
    """Share of the GPU for the engine (weights and key-value cache)."""
    cpu_kv_cache_gib: float = Field(1.0, gt=0)
    """Key-value cache on CPU, in GiB."""
    enforce_eager: bool = True
    """No graph capture: starts in seconds. Turn off for long runs on GPU."""


class ServerEngineConfig(Section):
    """vLLM servers in processes of their own, each started with launch/rollout_server.py; weights go over a wire."""

    type: Literal["server"] = "server"
    urls: list[str] = Field(min_length=1)
    """Addresses of the servers, e.g. [http://127.0.0.1:8001]. Each prompt's samples are made by one of them."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the servers (their --dtype); `auto`: the policy's. A server with another one is refused."""
    transfer: Literal["auto", "shared_memory", "http"] = "auto"
    """How weights travel: as files that the server maps, or in the body of HTTP requests. `auto`: shared memory for
    servers at 127.0.0.1 or localhost, HTTP for others."""
    weights_folder: str = "/dev/shm"
    """Where the main rank keeps the last weights, for servers that must be given them again. It holds them once."""
    bucket_mib: int = Field(256, ge=1)
    """Largest file of weights in MiB; a larger tensor has a file of its own."""
    max_in_flight: int = Field(256, ge=1)
    """Completions that this rank asks of one server at once."""
    start_timeout_s: float = Field(600.0, gt=0)
    """How long to wait at the start of a run for servers that are still loading."""
    request_timeout_s: float = Field(600.0, gt=0)
    """Longest wait for one completion, queueing included."""
    push_timeout_s: float = Field(600.0, gt=0)
    """Longest wait for each request of a weight update, and for running completions to end before it."""
    retry_for_s: float = Field(600.0, ge=0)
    """How long to wait for a server to come back when none is left; then the run ends. Below the time-out of
    collective operations (2 hours) if there are several ranks."""
    retries: int = Field(3, ge=0)
    """How often one completion is asked for again of servers that are well; after that the run ends."""
    heartbeat_s: float = Field(2.0, gt=0)
    """Seconds between two questions whether a server is well."""
    heartbeat_timeout_s: float = Field(20.0, gt=0)
    """A server that has not answered for so long is given up. One whose process ended is noticed at once."""

    @field_validator("urls")
    @classmethod
    def _check_urls(cls, urls: list[str]) -> list[str]:
        cleaned = [url.rstrip("/") for url in urls]
        for url in cleaned:
            try:
                parts = urlsplit(url)
                is_sound = parts.scheme == "http" and bool(parts.hostname) and parts.port is not None
            except ValueError:
                is_sound = False
            if not is_sound or parts.path or parts.query or parts.username:
                raise ValueError(f"{url!r} is no address of a rollout server: write http://HOST:PORT")
        doubled = sorted({url for url in cleaned if cleaned.count(url) > 1})
        if doubled:
            raise ValueError(f"{doubled} stand there twice: name each server once")
        return cleaned

    @model_validator(mode="after")
    def _check_heartbeat(self) -> "ServerEngineConfig":
        if self.heartbeat_timeout_s < self.heartbeat_s:
            raise ValueError(
                f"heartbeat_timeout_s = {self.heartbeat_timeout_s} is below heartbeat_s = {self.heartbeat_s}: a server "
                "would be given up before it is asked again; raise heartbeat_timeout_s"
            )
        return self


SERVER_CONNECTION = tuple(name for name in ServerEngineConfig.model_fields if name not in ("type", "dtype"))
"""Settings of the servers' section that change where and how long to ask, not what is sampled."""

EngineConfig = Annotated[TransformersEngineConfig | VllmEngineConfig | ServerEngineConfig, Field(discriminator="type")]
