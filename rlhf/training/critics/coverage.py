"""Whether offline episodes cover what the best of them do: the gate before a critic without optimism."""

import logging

from accelerate import Accelerator

from rlhf.config.critic_ensemble import OfflineConfig
from rlhf.config.sources import ConfigError
from rlhf.data.episode_store import quantile
from rlhf.training.collectives import sum_numbers
from rlhf.training.critics.optimistic import OptimisticCritic

TOP_SHARE = 0.95
log = logging.getLogger(__name__)


def check_coverage(critic: OptimisticCritic, settings: OfflineConfig, accelerator: Accelerator) -> float:
    """Relative condition number of the top-return offline episodes' actions with respect to all of them. Collective.

    NOAH asks for N_off >= C / eps^2 offline actions, with the range of values 1 (the paper's c* d H^4 / eps^2, whose
    constant is unknown, and of whose c* this is a proxy). Where there are fewer: a warning, or ConfigError.
    """
    if settings.coverage == "off":
        return float("nan")
    episodes = critic.memory.offline
    returns = sorted(episode.episode_return for episode in episodes)
    top = [e for e in episodes if e.episode_return >= quantile(returns, TOP_SHARE)] if episodes else []
    found = critic.novelty.coverage(critic.transitions(top)) if top else 0.0
    sums = sum_numbers({"coverage": found * len(top), "episodes": len(top)}, accelerator.device)
    coverage = sums["coverage"] / max(sums["episodes"], 1)
    needed = coverage / settings.coverage_error**2
    if critic.actions < needed:
        message = (
            f"offline.path holds {critic.actions} actions, and telling its best episodes' values to "
            f"{settings.coverage_error:g} of the range takes about {needed:,.0f} (relative condition number "
            f"{coverage:.1f}; the bound's constant is unknown): give more data or a larger offline.coverage_error, use "
            "preset nora_hybrid, which does not rest on coverage, or set offline.coverage to warn or off"
        )
        if settings.coverage == "error":
            raise ConfigError([message])
        log.warning("%s", message)
    return coverage
