"""Costs of one device from runs that were made on it: phases of `metrics.jsonl` against the samples of each step."""

import itertools
import json
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from peers.scaling_model import Batch, Costs, Workload, decoding_steps
from rlhf.training.run_folder import RunFolder


@dataclass(frozen=True)
class Observed:
    """One step of a run of one rank: its batch, and seconds by phase. `rest`: all but generation, update and sync."""

    batch: Batch
    prompt_tokens: float
    slots: int
    generate: float
    learn: float
    sync: float
    rest: float

    @property
    def total(self) -> float:
        return self.generate + self.learn + self.sync + self.rest

    @property
    def learned_tokens(self) -> float:
        """Forwarded by the learner: of groups with a signal the prompt once, completions up to their last target."""
        return float((self.prompt_tokens + (self.batch.lengths - 1).sum(1))[self.batch.has_signal].sum())


def read_steps(folder: RunFolder, prompt_tokens: float, slots: int) -> list[Observed]:
    """All steps but the first, which warms up. Raises ValueError where the run generated ahead of learning."""
    groups: dict[int, dict[str, list[dict]]] = defaultdict(lambda: defaultdict(list))
    for sample in folder.read_samples():
        groups[sample["step"]][sample["prompt_id"]].append(sample)
    observed = []
    for record in folder.read_metrics()[1:]:
        if "time/wait" in record:
            raise ValueError(f"{folder.path} generated ahead of learning: its phases do not add up to its steps")
        of_step = list(groups[record["step"]].values())
        lengths = np.array([[sample["completion_tokens"] for sample in group] for group in of_step])
        signal = np.array([len({sample["reward"] for sample in group}) > 1 for group in of_step])
        generate, learn, sync = (record.get(f"time/{phase}", 0.0) for phase in ("generate", "update", "sync"))
        rest = record["time/step"] - generate - learn - sync
        observed.append(Observed(Batch(lengths, signal), prompt_tokens, slots, generate, learn, sync, rest))
    return observed


def fit(steps: Sequence[Observed], weight_bytes: int, gradient_bytes: int) -> Costs:
    """Costs that predict these steps best, none below 0: least squares of seconds over their mean."""
    decoding = [
        [
            decoding_steps(s.batch.lengths.ravel(), s.slots),
            s.batch.lengths.sum(),
            s.prompt_tokens * len(s.batch.lengths),
        ]
        for s in steps
    ]
    learning = [[1.0, s.learned_tokens] for s in steps if s.batch.has_signal.any()]
    decode_step, decode_row, prefill = non_negative(decoding, [s.generate for s in steps])
    learn_step, learn_token = non_negative(learning, [s.learn for s in steps if s.batch.has_signal.any()])
    return Costs(
        decode_step, decode_row, prefill, learn_step, learn_token,
        sample_s=statistics.mean(s.rest / s.batch.lengths.size for s in steps),
        sync_byte_s=statistics.mean(s.sync for s in steps) / weight_bytes,
        weight_bytes=weight_bytes, gradient_bytes=gradient_bytes,
    )  # fmt: skip


def non_negative(rows: Sequence[Sequence[float]], seconds: Sequence[float]) -> list[float]:
    """Least squares with coefficients of at least 0, relative to the seconds: the best of all subsets of columns."""
    weights = 1 / np.asarray(seconds, dtype=float)
    matrix = np.asarray(rows, dtype=float) * weights[:, None]
    columns = matrix.shape[1]
    best, best_error = [0.0] * columns, float("inf")
    for size in range(1, columns + 1):
        for kept in itertools.combinations(range(columns), size):
            found = np.linalg.lstsq(matrix[:, kept], np.ones(len(weights)), rcond=None)[0]
            error = float(((matrix[:, kept] @ found - 1) ** 2).sum())
            if (found >= 0).all() and error < best_error:
                best_error, best = error, [0.0] * columns
                for column, value in zip(kept, found.tolist(), strict=True):
                    best[column] = value
    return best


def lognormal_workload(steps: Sequence[Observed], max_tokens: int) -> Workload:
    """The workload whose draws resemble these steps'. Completions that were cut off make both parameters smaller."""
    logs = np.log(np.maximum(1, np.concatenate([s.batch.lengths.ravel() for s in steps])))
    prompts, samples = steps[0].batch.lengths.shape
    return Workload(
        prompts, samples, steps[0].prompt_tokens, float(np.exp(logs.mean())), float(logs.std()), max_tokens,
        float(np.mean([s.batch.has_signal.mean() for s in steps])), steps[0].slots,
    )  # fmt: skip


def write_costs(costs: Costs, file: Path, origin: str) -> None:
    """With a line that says where they come from."""
    file.write_text(json.dumps({"origin": origin, **asdict(costs)}, indent=1) + "\n", encoding="utf-8")


def read_costs(file: Path) -> tuple[Costs, str]:
    """What `write_costs` wrote. Raises ValueError naming what is missing, unknown or negative."""
    values = json.loads(file.read_text(encoding="utf-8"))
    origin, names = values.pop("origin", str(file)), set(Costs.__dataclass_fields__)
    if wrong := sorted(names ^ values.keys()):
        raise ValueError(f"{file}: missing or unknown: {', '.join(wrong)}; it needs {', '.join(sorted(names))}")
    if negative := [name for name, value in values.items() if value < 0]:
        raise ValueError(f"{file}: below 0: {', '.join(negative)}")
    return Costs(**values), origin
