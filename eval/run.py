"""`python -m eval run`: ask, complete, judge, write. A run that was killed goes on after its last finished batch.

Each batch of questions is one file under `parts/`, renamed into place when whole; a reward model's scores are added in
a second pass (eval/rescoring.py). `samples.jsonl` is the files' concatenation. Ranks of `accelerate launch` take
batches in turn.
"""

import json
import time
from dataclasses import asdict
from pathlib import Path

from accelerate import Accelerator

from eval.artefacts import SETTINGS, read_part, write_results
from eval.asking import Batch, answer, cut_into_batches, load, load_shots, longest_sequence
from eval.checkpoints import build_eval_engine, load_eval_tokenizer
from eval.progress import EvalProgress
from eval.rescoring import rescore, reward_model_source
from eval.scoring import make_pool
from eval.settings import FREE_SETTINGS, EvalSettings
from eval.templates import build_template
from rlhf.config.loading import to_dict
from rlhf.data.errors import DataError
from rlhf.training.checkpoint import config_differences
from rlhf.training.launch_checks import check_processes
from rlhf.training.run_folder import json_line, write_atomically


def run(settings: EvalSettings) -> Path:
    """Evaluate as told; returns the folder with the results.

    Raises DataError for benchmarks and templates that cannot be used, and for a folder that holds an evaluation with
    other settings; EngineError when the engine fails.
    """
    # not PartialState: that does not read ACCELERATE_USE_CPU, and each process would evaluate everything
    state = Accelerator()
    check_processes(state, "-m eval run ...")
    start = time.monotonic()
    reward_model = reward_model_source(settings)
    folder = settings.folder
    if state.is_main_process:
        _claim(folder, settings)
    state.wait_for_everyone()
    tokenizer = load_eval_tokenizer(settings)
    benchmarks = [load(settings, name) for name in settings.benchmarks]
    template = build_template(settings.template, tokenizer, shots=load_shots(settings), shot_count=settings.shots)
    batches = [batch for benchmark in benchmarks for batch in cut_into_batches(settings, benchmark, template)]
    mine = batches[state.process_index :: state.num_processes]
    missing = [batch for batch in mine if not _part(folder, batch).exists()]
    engine = None
    if missing:
        longest = longest_sequence(settings, batches)
        log_file = folder / f"engine-{state.process_index}.log"
        engine = build_eval_engine(settings, tokenizer, longest, state.process_index, log_file)
    try:
        with (
            EvalProgress(state.is_main_process) as progress,
            make_pool(settings.grader_workers, settings.grader_timeout_s) as pool,
        ):
            for name in settings.benchmarks:
                ours = [batch for batch in mine if batch.benchmark == name]
                progress.start(name, sum(len(batch.questions) for batch in ours) * settings.samples)
                for batch in ours:
                    part = _part(folder, batch)
                    is_fresh = not part.exists()
                    if is_fresh:
                        assert engine is not None
                        answers = answer(settings, batch, engine, pool)
                        write_atomically(part, [json_line(asdict(one)) for one in answers])
                    else:
                        answers = read_part(part)
                    right, tokens = sum(a.outcome == "right" for a in answers), sum(a.tokens for a in answers)
                    progress.advance(len(answers), right, tokens, is_fresh)
            if reward_model is not None:
                if engine is not None:
                    engine.close()  # the reward model needs the memory
                rescore(reward_model, [(batch, _part(folder, batch)) for batch in mine], state.device, progress)
            state.wait_for_everyone()
            if state.is_main_process:
                seconds = time.monotonic() - start
                parts = [_part(folder, batch) for batch in batches]
                progress.message(write_results(folder, settings, benchmarks, template, parts, seconds))
        state.wait_for_everyone()
    finally:
        if engine is not None:
            engine.close()
    return folder


def _claim(folder: Path, settings: EvalSettings) -> None:
    """Make the folder, or check that what it holds was made with these settings."""
    file = folder / SETTINGS
    if file.exists():
        saved = json.loads(file.read_text(encoding="utf-8"))
        now = to_dict(settings)
        differences = config_differences(
            {name: value for name, value in saved.items() if name not in FREE_SETTINGS},
            {name: value for name, value in now.items() if name not in FREE_SETTINGS},
        )
        if differences:
            told = "\n".join(line.replace("in the checkpoint", "there") for line in differences)
            raise DataError(f"{folder} holds an evaluation with other settings:\n{told}\nChoose another --output")
    (folder / "parts").mkdir(parents=True, exist_ok=True)
    write_atomically(file, [json.dumps(to_dict(settings), indent=1).encode()])


def _part(folder: Path, batch: Batch) -> Path:
    """The file for the answers of `batch`."""
    return folder / "parts" / f"{batch.benchmark}-{batch.number:05d}.jsonl"
