"""How records are read: marks, switches by a mark, exponents of regret."""

import pytest

from rlhf.algorithms.tabular.regret import LearningRecord, Switch, check_marks, doubling_marks, log_log_slope


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_the_slope_is_the_exponent(exponent):
    marks = doubling_marks(6400)
    assert marks == (400, 800, 1600, 3200, 6400)
    # what came before the last three marks is left out
    regret = [0.1, 0.2, *(7 * mark**exponent for mark in marks[2:])]
    assert log_log_slope(marks, regret) == pytest.approx(exponent, abs=1e-9)


def test_no_regret_at_all_has_slope_zero():
    assert log_log_slope((1, 2, 4), (0, 0, 0)) == pytest.approx(0)


def test_switches_are_counted_up_to_a_mark():
    switches = tuple(Switch(step, 1.0, step != 4) for step in (0, 3, 4, 10))
    record = LearningRecord((4, 16), (1.0, 2.0), switches)
    assert [record.switches_by(mark) for mark in (4, 5, 16)] == [2, 3, 4]
    assert record.violations == 1


def test_marks_that_make_no_curve_are_refused():
    for marks in ((), (2, 1, 8), (0, 8), (2, 2, 8), (2, 4)):
        with pytest.raises(ValueError, match="must increase"):
            check_marks(marks, 8)
    with pytest.raises(ValueError, match="at least 16"):
        doubling_marks(15)
    with pytest.raises(ValueError, match="2 marks"):
        log_log_slope((4,), (1.0,))
