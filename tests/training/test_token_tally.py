"""Counts of rejected tokens: summed over steps, the most rejected first, kept in checkpoints, shown in the report."""

import torch
import yaml

from rlhf.algorithms.curvature import token_shifts
from rlhf.algorithms.token_fields import TokenFields
from rlhf.algorithms.trust_region import TrustRegion
from rlhf.training.report.run_report import write_report
from rlhf.training.run_folder import RunFolder
from rlhf.training.screening import ScreenedStep
from rlhf.training.token_tally import MOST_REJECTED, TokenTally


class Words:
    """What a table asks of a tokenizer."""

    def decode(self, ids):
        return {7: " seven", 3: "<b>three</b>"}.get(ids[0], f"t{ids[0]}")


def test_the_most_rejected_come_first_and_survive_a_checkpoint():
    tally = TokenTally()
    tally.add([(7, 10, 2), (3, 4, 4), (5, 100, 0)])
    tally.add([(7, 10, 3), *((100 + index, 5, 1) for index in range(MOST_REJECTED))])
    again = TokenTally()
    again.load(tally.state())
    (table,) = again.tables(Words())
    assert table["rows"][0] == ["' seven'", 7, 20, 5, "25.0 %"]
    assert table["rows"][1] == ["'<b>three</b>'", 3, 4, 4, "100.0 %"]
    assert len(table["rows"]) == MOST_REJECTED
    assert all(row[3] > 0 for row in table["rows"])


def test_nothing_rejected_makes_no_table():
    tally = TokenTally()
    tally.add([(7, 10, 0)])
    assert tally.tables(Words()) == []


def test_a_step_counts_its_tokens_over_micro_batches():
    torch.manual_seed(0)
    hidden_ND, weight_VD, region = torch.randn(4, 5), torch.randn(9, 5), TrustRegion()
    step = ScreenedStep(keeps_hidden=False)
    for actions, accepted in (([7, 3, 7, 7], [False, True, True, False]), ([3, 3, 1, 7], [True, False, True, True])):
        actions_N, advantage_N = torch.tensor(actions), torch.ones(4)
        shifts = token_shifts(hidden_ND, weight_VD, actions_N, advantage_N, lr=1e-3, step_model="sgd")
        fields = TokenFields(
            advantage_N=advantage_N, weight_N=torch.ones(4), sequence_N=torch.tensor([0, 0, 1, 1]), sequences=2,
            engine_logp_N=torch.zeros(4),
        )
        step.add(shifts, fields, torch.tensor(accepted), hidden_ND, actions_N, region)
    assert step.token_counts() == [(1, 1, 0), (3, 3, 1), (7, 4, 2)]


def test_the_report_shows_the_table_as_text(tmp_path):
    tally = TokenTally()
    tally.add([(3, 4, 4)])
    run = RunFolder(tmp_path / "run")
    run.create(yaml.safe_dump({"run": {"name": "x"}}), resume=False)
    run.append_metrics(1, {"reward/mean": 0.5, "capo/reject_share": 0.1, "capo/kl_measured": 1e-3})
    run.write_tables(tally.tables(Words()))
    page = write_report(run).read_text(encoding="utf-8")
    assert "The most rejected tokens" in page and "&lt;b&gt;three&lt;/b&gt;" in page and "<b>three" not in page
    assert "Rejected tokens" in page and "Predicted and measured KL" in page
