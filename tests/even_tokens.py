"""A reward with a spread for any model, however random."""


def even_share(prompts, completions, completion_ids, **columns):
    """The share of even token ids."""
    return [sum(token % 2 == 0 for token in ids) / max(1, len(ids)) for ids in completion_ids]


def mostly_even(prompts, completions, completion_ids, **columns):
    """1 where most token ids are even, else 0: groups without a spread come up."""
    return [float(sum(token % 2 == 0 for token in ids) > 0.5 * len(ids)) for ids in completion_ids]
