"""Critics whose networks and states are on another device than the views of actions: on a GPU they are. Tensors of the
meta device stand for those of one: like them they refuse to be added to tensors of the CPU, and may be indexed by them.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.algorithms.mirror_descent import mirror_target, with_rest
from rlhf.training.critics.forms import TokenValues
from rlhf.training.critics.optimistic import OptimisticCritic
from rlhf.training.critics.transitions import Transitions
from tests.trainers.tiny_critics import loop_config, make_with_critic
from tests.trainers.tiny_language import save_tiny_language, sentences, token_config

META = torch.device("meta")
FEW = {"members": 4, "updates": 4, "episodes": 8, "candidates": 5}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_language(tmp_path_factory.mktemp("language"))


def on_meta(critic: OptimisticCritic, batch: Transitions) -> Transitions:
    """Moves the critic, and returns the batch as it would be there."""
    critic.device = META
    for name in ("online", "target", "frozen"):
        getattr(critic, name).to(META)
    if isinstance(critic.form, TokenValues):
        critic.form.token_Ve, critic.form._latest = critic.form.token_Ve.to(META), None
    moved = {name: getattr(batch, name) for name in ("state_SD", "candidate_id_Sm", "candidate_logp_Sm")}
    return replace(batch, **{name: tensor.to(META) for name, tensor in moved.items() if tensor is not None})


@pytest.mark.parametrize(
    ("preset", "settings"),
    [
        ("nora", {}),
        ("nora", {"actor": {"trace_decay": 0.5}}),
        ("nora", {"ensemble": {"target": "mc_ref"}}),
        ("nora", {"optimism": {"kind": "lme"}}),
        ("nora_token", {"ensemble": {"path_spans": [2, 0]}}),
        ("nora_paper", {}),
        ("loop", {}),
        ("loop", {"plan": {"kind": "argmax_J"}}),
        ("loop_token", {}),
    ],
)
def test_losses_and_guidance_mix_no_devices(preset: str, settings: dict[str, Any], model: str, tmp_path: Path) -> None:
    if preset.startswith("loop"):
        algorithm = {"preset": preset} | settings | {"ensemble": FEW}
        config = loop_config(model, algorithm=algorithm)
    else:
        config = token_config(model, preset, **settings)
    critic = make_with_critic(config, tmp_path)[0].critic
    batch = on_meta(critic, critic.read(sentences()))
    online, slow = (critic.form.predict(network, batch) for network in (critic.online, critic.target))
    rewards_AK = critic._rewards(batch)
    actions, members = len(batch.view.state_A), critic.online.members
    assert critic.form.losses(online, slow, batch, rewards_AK).shape == (actions, members)
    assert critic.form.action_values(online, batch, rewards_AK).shape == (actions, members)
    guide, reward_A = critic._guide(critic.frozen, batch), critic._guide_rewards(critic.frozen, batch)[:, 0]
    advantage_A, value_S = critic.form.advantages(guide, batch, reward_A)
    assert advantage_A.shape == (actions,) and value_S.device.type == "meta"
    if isinstance(critic.form, TokenValues):
        target_SC = mirror_target(with_rest(batch.candidate_logp_Sm), critic.token_values(batch), 20.0)
        assert target_SC.device.type == "meta"
