"""A reward with a spread for any model, however random."""


def even_share(prompts, completions, completion_ids, **columns):
    """The share of even token ids."""
    return [sum(token % 2 == 0 for token in ids) / max(1, len(ids)) for ids in completion_ids]
