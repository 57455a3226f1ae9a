import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.training.statistics import difference_interval, format_share, intervals_overlap, wilson_interval


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"), [(10, 30, 0.192, 0.512), (400, 500, 0.763, 0.833), (81, 263, 0.2553, 0.3662)]
)
def test_wilson_matches_published_numbers(successes, n, low, high):
    digits = 4 if n == 263 else 3
    assert tuple(round(bound, digits) for bound in wilson_interval(successes, n)) == (low, high)


def test_wilson_at_the_edges():
    assert wilson_interval(0, 0) == (0.0, 1.0)
    z = 1.959964
    assert wilson_interval(0, 10) == pytest.approx((0.0, z * z / (10 + z * z)))
    assert wilson_interval(10, 10) == pytest.approx((10 / (10 + z * z), 1.0))
    with pytest.raises(ValueError, match="11 of 10"):
        wilson_interval(11, 10)


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_bounds_solve_the_score_equation(pair):
    successes, n = pair
    share, z = successes / n, 1.959964
    low, high = wilson_interval(successes, n)
    assert 0 <= low <= share <= high <= 1
    for bound in (low, high):
        assert abs(share - bound) == pytest.approx(z * math.sqrt(bound * (1 - bound) / n), abs=1e-9)


@pytest.mark.parametrize(
    ("before", "after", "low", "high"), [((48, 80), (56, 70), 0.0524, 0.3339), ((3, 10), (9, 10), 0.1705, 0.8090)]
)
def test_difference_matches_newcombe_1998_table_2(before, after, low, high):
    assert difference_interval(*before, *after) == pytest.approx((low, high), abs=5e-5)


def test_difference_without_data_says_nothing():
    assert difference_interval(0, 0, 5, 10) == (-1.0, 1.0)


def test_overlap_and_format():
    assert intervals_overlap((0.1, 0.3), (0.3, 0.5))
    assert not intervals_overlap((0.1, 0.29), (0.3, 0.5))
    assert not intervals_overlap((0.3, 0.5), (0.1, 0.29))
    assert format_share(0.8, (0.763, 0.8333)) == "80.0 % [76.3, 83.3]"
