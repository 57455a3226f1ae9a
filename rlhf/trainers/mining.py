"""A preference dataset of a model's own completions: drawn, graded, paired, written batch by batch."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from rlhf.config.loading import to_yaml
from rlhf.config.mining import MiningConfig
from rlhf.data.order import PromptStream
from rlhf.data.pairs import Pair, configured_pairs
from rlhf.data.seeds import derive_seed
from rlhf.data.sources import load_prompts
from rlhf.data.types import Sample
from rlhf.models.loading import load_tokenizer
from rlhf.rewards.scoring import RewardScorer
from rlhf.rollouts.build import build_engine
from rlhf.rollouts.requests import make_requests
from rlhf.training.run_folder import RunFolder, write_atomically


def mine(config: MiningConfig) -> Path:
    """Write `<run>/preferences.jsonl`; returns its path. A run that was interrupted goes on after its last batch.

    Each line has prompt, chosen and rejected as TRL takes them (text, or messages), and the prompt's answer. Prints how
    many completions were right and why others made no pair.
    """
    folder = RunFolder(Path(config.run.folder) / config.run.name)
    folder.create(to_yaml(config), resume=config.run.resume == "auto")
    parts = folder.path / "batches"
    parts.mkdir(exist_ok=True)
    tokenizer = load_tokenizer(config.model)
    size = config.prompts if config.split == "held_out" else None
    source = load_prompts(config.data, tokenizer, seed=config.run.seed, split=config.split, size=size)
    stream = PromptStream(source, derive_seed(config.run.seed, "order"))
    engine = build_engine(
        config.engine, config.model, tokenizer=tokenizer, seed=derive_seed(config.run.seed, "engine") % 2**31,
        longest_sequence=config.data.max_prompt_tokens + config.sampling.max_tokens,
        log_file=folder.path / "engine.log",
    )  # fmt: skip
    scorer = RewardScorer(config.rewards)
    console = Console(stderr=True)
    batches = range(0, config.prompts, config.prompts_per_batch)
    try:
        for number, start in enumerate(track(batches, "mining", console=console, disable=not console.is_terminal)):
            prompts = stream.take(min(config.prompts_per_batch, config.prompts - start))
            part = parts / f"{number:06d}.json"
            if part.exists():
                continue
            requests = make_requests(prompts, config.sampling.samples_per_prompt, config.run.seed, number)
            samples = scorer.score(engine.generate(requests, config.sampling))
            record = json.dumps(_batch(samples, config), ensure_ascii=False)
            write_atomically(part, [record.encode("utf-8", "surrogatepass")])
    finally:
        scorer.close()
        engine.close()
    return _merge(sorted(parts.glob("*.json")), folder.path / "preferences.jsonl")


def pair_row(pair: Pair) -> dict[str, Any]:
    """The pair as a line of TRL's preference format, conversational where the prompt is."""
    prompt = pair.chosen.prompt
    row: dict[str, Any] = {"prompt": prompt.text}
    for name, sample in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        is_text = isinstance(prompt.text, str)
        row[name] = sample.text if is_text else [{"role": "assistant", "content": sample.text}]
    return row | {"id": prompt.id, "answer": prompt.columns.get("answer")}


def _batch(samples: list[Sample], config: MiningConfig) -> dict[str, Any]:
    """The lines of a batch, and counts."""
    size, lines, counts = config.sampling.samples_per_prompt, [], Counter[str]()
    for start in range(0, len(samples), size):
        made = configured_pairs(samples[start : start + size], config.pairs, seed=config.run.seed)
        # two completions that differ as tokens may be the same text
        kept = [pair for pair in made.pairs if pair.chosen.text.strip() and pair.rejected.text.strip()]
        rows = [row for row in map(pair_row, kept) if row["chosen"] != row["rejected"]]
        counts.update(made.dropped | {"same_text": len(made.pairs) - len(rows)})
        lines += rows
    counts["completions"] = len(samples)
    counts["right"] = sum(s.verdict is not None and s.verdict.outcome == "right" for s in samples)
    return {"lines": lines, "counts": counts}


def _merge(parts: list[Path], file: Path) -> Path:
    records = [json.loads(part.read_bytes()) for part in parts]
    rows = [json.dumps(line, ensure_ascii=False) + "\n" for record in records for line in record["lines"]]
    write_atomically(file, [row.encode("utf-8", "surrogatepass") for row in rows])
    counts: Counter[str] = sum((Counter(record["counts"]) for record in records), Counter())
    right, total = counts.pop("right", 0), counts.pop("completions", 0)
    left_out = ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items()) if count) or "none"
    print(f"{file}: {len(rows):,} pairs; {right:,} of {total:,} completions right; left out: {left_out}")
    return file
