"""VPO and its relatives: preference optimisation, online from graded rollouts or offline on a dataset."""

from typing import Any, Literal

from pydantic import Field, model_validator

from rlhf.config.algorithm import DynamicSamplingConfig
from rlhf.config.data import PreferencesConfig, PreferenceSourceConfig
from rlhf.config.recipe import RecipeConfig
from rlhf.config.rules import shared_contradictions
from rlhf.config.section import Section

PRESETS: dict[str, dict[str, Any]] = {
    # arXiv 2405.19320; its own alpha and beta were not found
    "vpo": {},
    # arXiv 2305.18290
    "dpo": {"alpha": 0.0},
    # arXiv 2310.12036
    "ipo": {"alpha": 0.0, "loss_type": "ipo"},
    # arXiv 2405.21046: a coefficient of 1e-5 without beta in front (TRL's default), so alpha = 1e-5 / beta
    "xpo": {"calibration": "ref"},
}
XPO_COEFFICIENT = 1e-5
OFFLINE_CALIBRATIONS = ("chosen", "rejected")
DEFAULT_ALPHA = {"online": 1e-3, "offline": 5e-3}
DEFAULT_CALIBRATION = {"online": "ref", "offline": "chosen"}


class PairsConfig(Section):
    """Which completions of a prompt are set against each other (rlhf/data/pairs.py). Equal rewards make no pair."""

    strategy: Literal["one", "zip", "all"] = "zip"
    """One of the best against one of the worst; the k-th best against the k-th worst; or every two."""
    max_per_prompt: int = Field(4, ge=1)
    """Most pairs of a prompt; together they weigh as much as one pair does."""
    keep_truncated: bool = False
    """Let completions that were cut off be the chosen ones."""
    max_length_difference: int | None = Field(None, ge=0)
    """Leave out pairs whose lengths differ by more tokens."""


class PreferenceConfig(Section):
    """-log sigmoid(beta (R+ - R-)) + sign alpha beta E_cal[R], R = log pi / pi_ref (docs/vpo.md). A preset sets the
    fields that are not given."""

    type: Literal["vpo"] = "vpo"
    preset: Literal["vpo", "dpo", "ipo", "xpo"] = "vpo"
    """Named settings; any field below overrides its preset."""
    mode: Literal["online", "offline"] = "online"
    """online: completions of the policy, preferred by their rewards; optimism. offline: a dataset of pairs; pessimism.
    """
    beta: float = Field(0.1, gt=0)
    """Weight of the KL to the reference."""
    alpha: float | None = Field(None, ge=0)
    """Weight of the value term. None: 1e-3 online, 5e-3 offline (ours; the paper's were not found)."""
    alpha_schedule: Literal["constant", "linear", "inverse"] = "constant"
    """alpha stays, falls to 0 at the last optimizer step, or is divided by the number of the step."""
    sign: Literal[-1, 1] | None = None
    """1 pushes away from the calibration completions, -1 pulls towards them. None: 1 online, -1 offline."""
    loss_type: Literal["sigmoid", "ipo"] = "sigmoid"
    """DPO's loss, or IPO's square, whose optimum is finite."""
    labels: Literal["hard", "soft_bt", "sampled_bt"] = "hard"
    """The chosen one is better for certain, with probability sigmoid(reward gap / reward_temperature), or by a draw."""
    reward_temperature: float = Field(1.0, gt=0)
    """Of soft and sampled labels."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Hard labels: the share of pairs that are thought to be the wrong way round."""
    calibration: Literal["ref", "ref_wrong", "chosen", "rejected", "previous_policy"] | None = None
    """Whose completions the value term is of: the reference's, its wrong ones, one side of the pairs, the step's own
    rollouts. None: ref online, chosen offline."""
    calibration_samples: int = Field(1, ge=1)
    """Completions a prompt that are drawn from the reference, or taken of the rollouts."""
    value_reduction: Literal["sum", "token_mean"] = "sum"
    """Sum log-probs of a calibration completion, or divide by its tokens."""
    log_ratio_floor: float | None = Field(None, lt=0)
    """Optimism: below this log-ratio a calibration completion has no gradient; without it the loss has no bound."""
    min_calibration_ratio: float | None = Field(None, lt=0)
    """Stop the run when the mean log-ratio of the calibration completions falls below."""
    max_displacement: float | None = Field(20.0, gt=0)
    """Warn when the chosen ones' log-prob has fallen below the reference's by more nats, as their mean."""
    pairs: PairsConfig = PairsConfig()
    """How pairs are made of rollouts."""
    replay: Literal["latest", "window", "all"] = "latest"
    """Online: learn from the pairs of this step, of the last `replay_window` steps, or of all."""
    replay_window: int = Field(4, ge=1)
    """Steps of the window, this one among them."""
    reference: Literal["fixed", "iteration"] = "fixed"
    """The starting checkpoint (the base under LoRA), or the policy as it was every `reference_every` steps."""
    reference_every: int = Field(10, ge=1)
    """Steps between changes of the reference."""
    reference_logps: Literal["precomputed", "live"] = "precomputed"
    """Offline: once before the first step, into the run's folder, without a second model; or by a second model."""
    dynamic_sampling: DynamicSamplingConfig = DynamicSamplingConfig()
    """Online: replacement of prompts whose completions make no pair."""

    @property
    def needs_reference_model(self) -> bool:
        return self.mode == "online" or self.reference_logps == "live"

    @property
    def trains_policy(self) -> bool:
        """Whether the policy's weights change."""
        return True

    @property
    def direction(self) -> int:
        return self.sign or (1 if self.mode == "online" else -1)

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        name, mode = str(values.get("preset", "vpo")), values.get("mode", "online")
        filled = {**PRESETS.get(name, {}), **values}
        if filled.get("alpha") is None and mode in DEFAULT_ALPHA:
            beta = filled.get("beta", 0.1)
            filled["alpha"] = XPO_COEFFICIENT / beta if name == "xpo" and beta else DEFAULT_ALPHA[mode]
        if filled.get("calibration") is None:
            filled["calibration"] = DEFAULT_CALIBRATION.get(mode)
        return filled

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> "PreferenceConfig":
        if problems := _contradictions(self):
            raise ValueError("\n".join(problems))
        return self


def _contradictions(algorithm: PreferenceConfig) -> list[str]:
    problems = []
    if algorithm.preset in ("dpo", "ipo") and algorithm.alpha:
        problems.append(
            f"preset = {algorithm.preset} has no value term, and alpha = {algorithm.alpha:g} is given: set alpha to 0, "
            "or preset to vpo"
        )
    if algorithm.loss_type == "ipo" and (algorithm.labels != "hard" or algorithm.label_smoothing):
        problems.append("loss_type ipo takes hard labels: its optimum is finite already; use sigmoid for soft labels")
    if algorithm.labels != "hard" and algorithm.label_smoothing:
        problems.append(f"label_smoothing is for hard labels, and labels is {algorithm.labels}: set one of them back")
    if algorithm.mode == "offline":
        if algorithm.calibration not in OFFLINE_CALIBRATIONS and algorithm.alpha:
            problems.append(
                f"calibration = {algorithm.calibration} needs rollouts, and mode is offline: set it to chosen or "
                "rejected"
            )
        if algorithm.labels != "hard":
            problems.append(
                f"labels = {algorithm.labels} needs rewards, and a dataset of pairs has none: set it to hard"
            )
        for name, default in (("replay", "latest"), ("reference", "fixed")):
            if getattr(algorithm, name) != default:
                problems.append(f"{name} = {getattr(algorithm, name)} is for mode online: set it to {default}")
    return problems


class VPOConfig(RecipeConfig):
    """Value-incentivised preference optimisation (arXiv 2405.19320), DPO, IPO and XPO; online and offline."""

    data: PreferenceSourceConfig
    algorithm: PreferenceConfig = PreferenceConfig()

    @property
    def completions_per_prompt(self) -> int:
        return 2 if self.algorithm.mode == "offline" else self.sampling.samples_per_prompt

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> "VPOConfig":
        if problems := [*shared_contradictions(self), *_mode(self)]:
            raise ValueError("\n".join(problems))
        return self


def _mode(config: VPOConfig) -> list[str]:
    algorithm, problems = config.algorithm, []
    is_dataset = isinstance(config.data, PreferencesConfig)
    if is_dataset != (algorithm.mode == "offline"):
        remedy = "algorithm.mode to offline" if is_dataset else "data.type to preferences, or algorithm.mode to online"
        problems.append(f"algorithm.mode = {algorithm.mode} with data.type = {config.data.type}: set {remedy}")
    if config.environment is not None:
        problems.append(
            f"environment.type = {config.environment.type}: preferences are of single answers; remove environment, or "
            "learn from sessions with recipes/grpo.py or recipes/ppo.py"
        )
    if algorithm.mode == "online" and config.sampling.samples_per_prompt < 2:
        problems.append(
            f"sampling.samples_per_prompt = {config.sampling.samples_per_prompt} makes no pairs: set it to 2 or more"
        )
    if config.model.lora is not None and algorithm.reference == "iteration":
        problems.append(
            "algorithm.reference = iteration with model.lora: under LoRA the reference is the base; set it to fixed"
        )
    if config.model.lora is not None and config.model.lora.dropout > 0:
        problems.append(
            f"model.lora.dropout = {config.model.lora.dropout}: a pair's weight is taken from log-probs without "
            "dropout, and its gradient would have it; set it to 0"
        )
    return problems
