import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from rlhf.training.report.plots import draw_all, running_mean, series, sparkline

EVALUATION = {"step": 0, "name": "held_out", "accuracy": 0.3, "low": 0.2, "high": 0.4}


def steps(count):
    return [{"step": s, "reward/mean": s / count, "reward/_own $x$": 0.5, "loss": math.nan if s == 2 else 0.1,
             "time/generate": 2.0, "time/step": 3.0, "tokens/truncated_share": 0.25} for s in range(1, count + 1)]


def test_running_mean_is_the_mean_of_the_nearest_steps():
    assert running_mean(np.array([1.0, 5.0])).tolist() == [1.0, 5.0]
    values = np.arange(40.0) ** 2
    values[10] = np.nan
    smooth = running_mean(values)
    assert smooth[0] == pytest.approx(np.mean(values[:3]))
    assert smooth[20] == pytest.approx(np.mean(values[18:23]))
    assert smooth[11] == pytest.approx(np.nanmean(values[9:14]))
    assert smooth[39] == pytest.approx(np.mean(values[37:]))
    assert np.isnan(running_mean(np.array([np.nan]))).all()


def test_every_chart_is_well_formed_and_follows_the_page():
    drawings = draw_all(steps(30), [EVALUATION, EVALUATION | {"step": 30, "accuracy": 0.8, "low": 0.7, "high": 0.9}])
    latest = {drawing.title: drawing.latest for drawing in drawings}
    assert latest == {"Held-out accuracy": "80.0 %", "Reward": "1", "Reward by part": "0.5", "Loss": "0.1",
                      "Cut off and ungradable": "25.0 %", "Time by phase": "3 s per step"}
    for drawing in drawings:
        ElementTree.fromstring(drawing.svg)
        assert not re.search(r"#0[1-5]0[0-9a-f]{3}", drawing.svg)
        assert "var(--" in drawing.svg and "<metadata" not in drawing.svg
    assert "loss not finite" in next(d.svg for d in drawings if d.title == "Loss")


def test_short_and_empty_runs_can_be_drawn():
    assert draw_all([], []) == []
    assert [d.title for d in draw_all(steps(1), [EVALUATION])] == [
        "Reward", "Reward by part", "Loss", "Cut off and ungradable", "Time by phase"]
    assert len(draw_all(steps(400), [])) == 5
    only_bad = draw_all([{"step": 1, "loss": math.nan}, {"step": 2, "loss": math.inf}], [])
    assert [d.title for d in only_bad] == ["Loss"]


def test_series_skips_steps_without_the_metric_and_text():
    records = [{"step": 1, "a": 2.0}, {"step": 2}, {"step": 3, "a": "text"}, {"step": 4, "a": None}]
    records.append({"step": 5, "a": 1})
    assert [part.tolist() for part in series(records, "a")] == [[1.0, 5.0], [2.0, 1.0]]


def test_sparkline_spans_its_box():
    assert sparkline([0.0, math.nan, 1.0], 100, 22) == "1.0,20.0 99.0,2.0"
    assert sparkline([3.0, 3.0], 100, 22) == "1.0,11.0 99.0,11.0"
    assert sparkline([1.0], 100, 22) == ""
    assert len(sparkline(range(1000), 120).split()) == 120
