"""Rewards of a tiny run that go wrong in its third step; before that they are as good as tests/even_tokens.py."""

import time

calls = 0


def _even_share(completion_ids):
    return [sum(token % 2 == 0 for token in ids) / max(1, len(ids)) for ids in completion_ids]


def raises(prompts, completions, completion_ids, **columns):
    """Raises for the completions of the third call."""
    global calls
    calls += 1
    if calls >= 3:
        raise ConnectionError("the judge is gone")
    return _even_share(completion_ids)


def hangs(prompts, completions, completion_ids, **columns):
    """Does not come back from the third call."""
    global calls
    calls += 1
    if calls == 3:
        time.sleep(600)
    return _even_share(completion_ids)
