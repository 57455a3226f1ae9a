"""Every random draw of a run is a pure function of what it is for, never of who draws it or when."""

import hashlib


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from e.g. (run seed, step, prompt id, sample index); distinct parts give independent seeds.

    >>> derive_seed(0, 1, "arithmetic:3", 2) == derive_seed(0, 1, "arithmetic:3", 2)
    True
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
