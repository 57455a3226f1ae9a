"""Which rank learns from which prompts' samples: as equal work for each as whole groups allow.

Rollouts differ in length, and the ranks of an optimizer step wait for the slowest. A group's samples stay together:
they share their prompt's forward pass, and minibatches are made of whole groups. Gradients are sums over all ranks, so
who learns from what changes only the order in which they are added.
"""

from collections.abc import Sequence

from rlhf.models.micro_batches import forwarded_tokens
from rlhf.training.batch import TrainingSample
from rlhf.training.collectives import gather_lists, rank_of_world


def assign(costs: Sequence[float], ranks: int, groups_per_rank: Sequence[int] | None = None) -> list[int]:
    """The rank of each group: the costliest first, each to the rank with the least so far (longest processing time
    first: at most a third above the optimum). `groups_per_rank`: how many each must have, where that is given."""
    room = [len(costs)] * ranks if groups_per_rank is None else list(groups_per_rank)
    load, owner = [0.0] * ranks, [0] * len(costs)
    for group in sorted(range(len(costs)), key=lambda group: (-costs[group], group)):
        rank = min((rank for rank in range(ranks) if room[rank]), key=lambda rank: (load[rank], rank))
        owner[group] = rank
        load[rank] += costs[group]
        room[rank] -= 1
    return owner


def imbalance(costs: Sequence[float], owners: Sequence[int], ranks: int) -> float:
    """The largest load over the mean load; 1 where all are equal, and where there is nothing to do."""
    load = [0.0] * ranks
    for cost, owner in zip(costs, owners, strict=True):
        load[owner] += cost
    return max(load) * ranks / sum(load) if sum(load) else 1.0


def group_cost(group: Sequence[TrainingSample]) -> float:
    """Forwarded tokens: a prompt once, and of each completion what comes before its last target. Attention grows with
    the square of a length; at lengths where it counts, so do the tokens."""
    sequences = [sample.sequence for sample in group if sample.learned and sample.length]
    return float(forwarded_tokens(sequences)) if sequences else 0.0


def balanced(
    groups: list[list[TrainingSample]], *, keeps_counts: bool
) -> tuple[list[list[TrainingSample]], dict[str, float]]:
    """This rank's groups after the exchange, and how unequal the ranks' work was and is. Collective.

    `keeps_counts`: each rank has as many groups as before, where they are dealt into minibatches.
    """
    rank, ranks = rank_of_world()
    if ranks == 1:
        return groups, {}
    counts = gather_lists([len(groups)])
    costs = gather_lists([group_cost(group) for group in groups])
    before = [owner for owner, count in enumerate(counts) for _ in range(count)]
    owners = assign(costs, ranks, counts if keeps_counts else None)
    measured = {"balance/imbalance_before": imbalance(costs, before, ranks)}
    if imbalance(costs, owners, ranks) >= measured["balance/imbalance_before"]:
        return groups, measured | {"balance/imbalance": measured["balance/imbalance_before"]}
    first = sum(counts[:rank])
    # only what changes hands travels
    leaving = {first + place: group for place, group in enumerate(groups) if owners[first + place] != rank}
    moved = dict(gather_lists(list(leaving.items())))
    mine = [place for place, owner in enumerate(owners) if owner == rank]
    kept = [groups[place - first] if before[place] == rank else moved[place] for place in mine]
    return kept, measured | {"balance/imbalance": imbalance(costs, owners, ranks)}
