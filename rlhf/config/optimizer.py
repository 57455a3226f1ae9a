"""The optimizer (discriminated by `type`) and the learning-rate schedule."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from rlhf.config.section import Section

Preset = Literal["rl", "sft", "pretrain"]
Beta = Annotated[float, Field(ge=0, lt=1)]
HAVE_STEP_COUNTS = ("block_budget", "block", "columns", "svd", "random")
"""Selectors whose elements carry their moments over to a new choice."""


class AdamWConfig(Section):
    """AdamW with decoupled weight decay (arXiv 1711.05101), torch's fused kernel."""

    type: Literal["adamw"] = "adamw"
    lr: float = Field(1e-6, gt=0)
    """Peak learning rate."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Decay rates of the moments."""
    eps: float = Field(1e-8, gt=0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay; norms and biases are not decayed."""


class AdamW8bitConfig(Section):
    """AdamW with 8-bit moments, from torchao or bitsandbytes (install one of them)."""

    type: Literal["adamw_8bit"] = "adamw_8bit"
    library: Literal["auto", "torchao", "bitsandbytes"] = "auto"
    """`auto`: torchao where it is installed, else bitsandbytes."""
    lr: float = Field(1e-6, gt=0)
    """Peak learning rate."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Decay rates of the moments."""
    eps: float = Field(1e-8, gt=0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay; norms and biases are not decayed."""


def libraries_of(config: AdamW8bitConfig) -> list[str]:
    """The packages that may provide it, in order of preference."""
    return ["torchao", "bitsandbytes"] if config.library == "auto" else [config.library]


class _OwnOptimizer(Section):
    """What the optimizers of this project share. `preset` sets the fields that are not given."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {}

    preset: Preset = "rl"
    """Named settings; any other field overrides its preset."""
    lr: float = Field(1e-6, gt=0)
    """Peak learning rate; AdamW's carries over."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay; norms and biases are not decayed."""
    state_dtype: Literal["float32", "bfloat16", "8bit"] = "float32"
    """Precision of the moments; bfloat16 is rounded stochastically, 8bit has a scale for each 256 values."""
    param_precision: Literal["native", "sr", "split16", "split8"] = "native"
    """`native`: float32 master copies of bfloat16 weights. Without copies: `sr` (stochastic rounding), `split16` (as
    exact as a copy, in 2 bytes), `split8` (in 1 byte)."""
    impl: Literal["auto", "foreach", "compiled", "loop"] = "auto"
    """Kernels; `auto` compiles large models where a compiler is found."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {**cls.PRESETS.get(str(values.get("preset", "rl")), {}), **values}


class AdaBeliefConfig(_OwnOptimizer):
    """AdaBelief (arXiv 2010.07468); docs/optimizers.md."""

    PRESETS = {
        "rl": {},
        "sft": {"eps": 1e-16, "max_update_rms": None},
        "pretrain": {"eps": 1e-16, "rectify": True, "weight_decay": 1e-4, "lr": 5e-4, "max_update_rms": None},
    }
    type: Literal["adabelief"] = "adabelief"
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Decay rates of the moments."""
    eps: float = Field(1e-19, gt=0)
    """Added to the stored second moment at every step: like an AdamW eps of sqrt(eps / (1 - beta2))."""
    rectify: bool = False
    """RAdam's warm-up; its first five steps are plain momentum."""
    amsgrad: bool = False
    """Keep the largest second moment."""
    max_update_rms: float | None = Field(1.0, gt=0)
    """Bound on the RMS of a tensor's step over lr."""

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> "AdaBeliefConfig":
        if self.rectify and self.max_update_rms is not None:
            raise ValueError(
                f"max_update_rms = {self.max_update_rms} bounds adaptive steps, and rectify has others: set "
                "max_update_rms to null, or rectify to false"
            )
        return self


class FrugalConfig(_OwnOptimizer):
    """FRUGAL (arXiv 2411.07837): moments for a changing part of the weights, signs for the rest; docs/optimizers.md."""

    PRESETS = {
        "rl": {},
        "sft": {"state_free_lr_scale": 0.1, "update_gap": 500, "selector": "columns", "state_dtype": "float32"},
        "pretrain": {
            "state_free_lr_scale": 1.0, "update_gap": 200, "selector": "block", "lr": 1e-3, "state_dtype": "float32",
        },
    }  # fmt: skip
    type: Literal["frugal"] = "frugal"
    state_dtype: Literal["float32", "bfloat16", "8bit"] = "bfloat16"
    """Precision of the moments; bfloat16 is rounded stochastically, 8bit has a scale for each 256 values."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Decay rates of the moments."""
    eps: float = Field(1e-8, gt=0)
    """Added to the root of the second moment; with state_full_rule adabelief as there, and 1e-19 where not given."""
    density: float = Field(0.25, ge=0, le=1)
    """Share of the hidden matrices' elements that have moments (rho)."""
    update_gap: int = Field(50, ge=1)
    """Optimizer steps between two choices of that share (T). A run of n steps passes over all weights when T <= n *
    density."""
    selector: Literal["auto", "block_budget", "block", "chunk", "columns", "rows", "randk", "svd", "random"] = "auto"
    """How the share is chosen: whole tensors, a stretch of each, columns, rows, entries, or a subspace."""
    order: Literal["ascending", "descending", "mirror", "random"] = "descending"
    """Order in which whole tensors are chosen."""
    state_full_rule: Literal["adamw", "adabelief", "lion"] = "adamw"
    """Rule of the share with moments, and of embeddings, head, norms and biases."""
    state_free_rule: Literal["sign", "sgd", "none"] = "sign"
    """Rule of the rest."""
    state_free_lr_scale: float = Field(0.25, ge=0)
    """Learning rate of the rest over lr: 0.25 makes its steps as large as AdamW's on pure noise."""
    state_mode: Literal["reset", "project", "keep"] = "reset"
    """Moments at a new choice: zeros; kept for elements that stay; kept by position, as moments of other elements."""

    @model_validator(mode="before")
    @classmethod
    def _fill_eps(cls, values: Any) -> Any:
        is_added_at_every_step = isinstance(values, dict) and values.get("state_full_rule") == "adabelief"
        return {"eps": 1e-19, **values} if is_added_at_every_step else values

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> "FrugalConfig":
        if self.state_mode == "project" and self.selector not in HAVE_STEP_COUNTS:
            raise ValueError(
                f"state_mode = project with selector {self.selector}: its elements have no step count of their own; "
                f"set selector to one of {', '.join(HAVE_STEP_COUNTS)}, or state_mode to reset"
            )
        return self


class AuONConfig(_OwnOptimizer):
    """AuON (arXiv 2509.24320): momentum normalised by each matrix's norm; AdamW for the rest; docs/optimizers.md."""

    PRESETS = {
        "rl": {},
        "sft": {"eps_norm": 1e-7},
        "pretrain": {"adjust_lr": "paper", "lr": 0.055, "adamw_lr": 3e-3, "weight_decay": 0.01, "eps_norm": 1e-7},
    }
    type: Literal["auon"] = "auon"
    lr: float = Field(1e-6, gt=0)
    """Peak learning rate of the matrices; with `match_rms_adamw` AdamW's carries over."""
    momentum: float = Field(0.95, ge=0, lt=1)
    """Decay rate of the momentum."""
    mode: Literal["paper", "repository"] = "paper"
    """The published form, or that of its repository, which does not normalise."""
    ns_steps: int = Field(0, ge=0)
    """Newton-Schulz steps on the normalised momentum; 1 is Hybrid-AuON."""
    adjust_lr: Literal["paper", "match_rms_adamw", "none"] = "match_rms_adamw"
    """Scale of a matrix's step by its shape."""
    eps_norm: float = Field(1e-12, gt=0)
    """Added to a matrix's norm."""
    adamw_lr: float | None = Field(None, gt=0)
    """Learning rate of embeddings, head, norms and biases; none given: `lr`."""
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    """Decay rates of AdamW's moments for the rest."""
    eps: float = Field(1e-8, gt=0)
    """AdamW's for the rest: added to the root of its second moment."""


class MuonConfig(Section):
    """Muon from torch: orthogonalised momentum for hidden matrices, AdamW for the rest."""

    type: Literal["muon"] = "muon"
    lr: float = Field(1e-6, gt=0)
    """Peak learning rate; steps are scaled to AdamW's size."""
    momentum: float = Field(0.95, ge=0, lt=1)
    """Decay rate of the momentum."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay; norms and biases are not decayed."""
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    """Decay rates of AdamW's moments for the rest."""


OptimizerConfig = Annotated[
    AdamWConfig | AdamW8bitConfig | AdaBeliefConfig | FrugalConfig | AuONConfig | MuonConfig,
    Field(discriminator="type"),
]


class ScheduleConfig(Section):
    """Learning rate over optimizer steps."""

    type: Literal["constant", "linear", "cosine"] = "constant"
    """Shape after warm-up; linear and cosine end at `final_ratio` of the peak."""
    warmup_steps: int = Field(0, ge=0)
    """Linear warm-up from 0."""
    final_ratio: float = Field(0.0, ge=0, le=1)
    """Learning rate at the last step over the peak."""
