"""The critic that a recipe's algorithm asks for."""

from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf.config.loop import AverageRewardConfig
from rlhf.config.optimistic_actor_critic import OptimisticConfig
from rlhf.config.ppo import ActorCriticConfig
from rlhf.config.recipe import RecipeConfig
from rlhf.config.sharding import Sharding
from rlhf.data.episodes import Episode
from rlhf.data.offline_episodes import load_offline_samples
from rlhf.models.packing import TrainingSequence, pack
from rlhf.models.policy import Policy
from rlhf.training.algorithm import Critic
from rlhf.training.collectives import rank_of_world
from rlhf.training.critics.average_reward import AverageRewardCritic
from rlhf.training.critics.coverage import check_coverage
from rlhf.training.critics.forms import CriticForm, ReferenceReturns, StateValues, TokenValues
from rlhf.training.critics.learner import CriticLearner
from rlhf.training.critics.optimistic import OptimisticCritic
from rlhf.training.critics.reference_reader import ReferenceReader
from rlhf.training.critics.transitions import Transitions, episode_of
from rlhf.training.optimizers import keeps_master_copies
from rlhf.training.weights.build import load_trained_policy
from rlhf.training.weights.fsdp2 import whole_tensor


def make_critic(
    config: RecipeConfig, policy: Policy, reference: Policy | None, accelerator: Accelerator,
    tokenizer: PreTrainedTokenizerBase | None = None, sharding: Sharding = "ddp",
) -> Critic | None:  # fmt: skip
    """On a model of its own, on the policy's states, or on the reference's (`reference`, or the base under LoRA); None
    for algorithms without one. `tokenizer`: for offline episodes.

    Raises DataError where offline episodes cannot be used, ConfigError where they do not cover what is asked of them.
    """
    algorithm = config.algorithm
    if isinstance(algorithm, OptimisticConfig):
        return _ensemble(config, algorithm, policy, reference, accelerator, tokenizer, sharding)
    if not isinstance(algorithm, ActorCriticConfig):
        return None
    trains_trunk = algorithm.critic.trunk == "separate"
    trunk = policy
    if trains_trunk:
        copies = keeps_master_copies(algorithm.critic.optimizer)
        trunk = load_trained_policy(config.model, accelerator, sharding, copies=copies, seed=config.run.seed)
    return CriticLearner(trunk, config, algorithm.critic, accelerator, trains_trunk=trains_trunk, sharding=sharding)


def _ensemble(
    config: RecipeConfig, algorithm: OptimisticConfig, policy: Policy, reference: Policy | None,
    accelerator: Accelerator, tokenizer: PreTrainedTokenizerBase | None, sharding: Sharding,
) -> OptimisticCritic:  # fmt: skip
    ensemble = algorithm.ensemble
    reader = ReferenceReader(
        policy.read_reference if reference is None else reference.read,
        token_budget=config.batch.tokens_per_micro_batch, device=accelerator.device,
        candidates=ensemble.candidates if ensemble.values_tokens else 0, is_sharded=sharding != "ddp",
    )  # fmt: skip
    hidden = policy.config.get_text_config().hidden_size
    form = _form(config, algorithm, policy, reference, hidden)
    offline = [] if algorithm.offline.path is None else _offline(config, algorithm, reader, tokenizer)
    kind = AverageRewardCritic if isinstance(algorithm, AverageRewardConfig) else OptimisticCritic
    critic = kind(reader, form, hidden, config, algorithm, accelerator, offline)
    if algorithm.preset == "noah":
        check_coverage(critic, algorithm.offline, accelerator)
    return critic


def _form(
    config: RecipeConfig, algorithm: OptimisticConfig, policy: Policy, reference: Policy | None, hidden: int
) -> CriticForm:
    ensemble, seed = algorithm.ensemble, config.run.seed
    if not ensemble.values_tokens:
        kind = ReferenceReturns if ensemble.target == "mc_ref" else StateValues
        return kind(ensemble, hidden, algorithm.value_bounds, seed, algorithm.actor.trace_decay)
    weight = (policy if reference is None else reference).causal_lm.get_output_embeddings().weight
    embedding_VD = whole_tensor(weight.detach())

    def policy_logps(batch: Transitions) -> Tensor:
        return candidate_logps(policy, batch)

    return TokenValues(ensemble, hidden, algorithm.value_bounds, seed, embedding_VD, policy_logps)


def candidate_logps(policy: Policy, batch: Transitions) -> Tensor:
    """Log-probs (S, m) of a token view's candidates under the policy as it is, without gradients; -inf where there is
    none."""
    # one more token, so that there is a state behind the last
    longer = [TrainingSequence(s.prompt_ids, (*s.completion_ids, s.completion_ids[-1])) for s in batch.sequences]
    packed = pack(longer).to(batch.state_SD.device)
    policy.eval()  # adapters have dropout
    found = policy(packed, candidate_id_Nm=batch.candidate_id_Sm).candidate_logp_Nm
    return found.masked_fill(batch.candidate_logp_Sm.isneginf(), -float("inf"))


def _offline(
    config: RecipeConfig, algorithm: OptimisticConfig, reader: ReferenceReader,
    tokenizer: PreTrainedTokenizerBase | None,
) -> list[Episode]:  # fmt: skip
    """This rank's share of the offline episodes, read by the reference."""
    if tokenizer is None:
        raise ValueError("offline episodes need a tokenizer: give it to make_critic")
    rank, ranks = rank_of_world()
    samples = load_offline_samples(
        algorithm.offline.path, tokenizer, max_prompt_tokens=config.data.max_prompt_tokens,
        max_completion_tokens=config.sampling.max_tokens, bounds=algorithm.actions.bounds,
    )[rank::ranks]  # fmt: skip
    readings = reader([TrainingSequence(sample.prompt.token_ids, sample.completion_ids) for sample in samples])
    return [
        episode_of(
            sample, reading, algorithm.actions, name=f"offline:{place}:{sample.id}", epoch=0,
            members=algorithm.ensemble.members, bootstrap=algorithm.ensemble.bootstrap, seed=config.run.seed,
        )
        for place, (sample, reading) in enumerate(zip(samples, readings, strict=True))
    ]  # fmt: skip
