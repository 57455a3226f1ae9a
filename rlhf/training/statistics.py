"""How sure an accuracy is: confidence intervals of proportions, and of the difference of two."""

import math

Z_95 = 1.959964
"""Two-sided 95 % quantile of the standard normal."""


def wilson_interval(successes: int, n: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson score interval of a proportion, as shares in [0, 1] (Wilson 1927, eq. for p given the observed share).

    It stays inside [0, 1] and is honest near 0 and 1, where the normal interval is not. With n = 0 nothing is known:
    (0, 1). Raises ValueError when successes is not in [0, n].
    """
    if not 0 <= successes <= n:
        raise ValueError(f"a proportion needs 0 <= successes <= n, got {successes} of {n}")
    if n == 0:
        return 0.0, 1.0
    share = successes / n
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    centre = share + z * z / (2 * n)
    scale = 1 + z * z / n
    # At 0 and n the bound is exact; rounding would put it at 1e-18 instead.
    low = 0.0 if successes == 0 else (centre - spread) / scale
    high = 1.0 if successes == n else (centre + spread) / scale
    return low, high


def difference_interval(
    before_successes: int, before_n: int, after_successes: int, after_n: int, z: float = Z_95
) -> tuple[float, float]:
    """Interval of after - before for two independent proportions (Newcombe 1998, Stat. Med. 17:873, method 10).

    Two evaluations of the same prompts are positively correlated, so for them the interval is rather too wide than too
    narrow. Raises ValueError like `wilson_interval`.
    """
    low_before, high_before = wilson_interval(before_successes, before_n, z)
    low_after, high_after = wilson_interval(after_successes, after_n, z)
    if before_n == 0 or after_n == 0:
        return -1.0, 1.0
    before, after = before_successes / before_n, after_successes / after_n
    difference = after - before
    low = difference - math.hypot(after - low_after, high_before - before)
    high = difference + math.hypot(high_after - after, before - low_before)
    return low, high


def intervals_overlap(a: tuple[float, float], b: tuple[float, float]) -> bool:
    """Whether two closed intervals share a point."""
    return a[0] <= b[1] and b[0] <= a[1]


def format_share(share: float, interval: tuple[float, float] | None = None) -> str:
    """`0.8` as `80.0 %`; with an interval `80.0 % [76.3, 83.3]`."""
    text = f"{100 * share:.1f} %"
    return text if interval is None else f"{text} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
