"""`python -m eval run | compare | grade | report | list`: `python -m eval COMMAND --help` says more."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rlhf.config.loading import ConfigError, build_config
from rlhf.config.sources import parse_command_line
from rlhf.data.errors import DataError

USAGE_ERROR = 2


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0; 1 where something asked for could not be used; 2 for a usage error."""
    command, *rest = arguments or ["--help"]
    commands = {"run": _run, "compare": _compare, "grade": _grade, "report": _report, "list": _list}
    if command not in commands:
        print("usage: python -m eval COMMAND ...\n")
        print("  run      complete and judge benchmarks with a checkpoint (--model, --benchmarks, ...)")
        print("  compare  two result folders, question by question")
        print("  grade    someone else's completions with this grader")
        print("  report   write a result folder's report.html again")
        print("  list     the benchmarks")
        return 0 if command in ("-h", "--help") else USAGE_ERROR
    try:
        return commands[command](rest)
    except ConfigError as error:
        print("\n".join(f"eval {command}: {problem}" for problem in error.problems), file=sys.stderr)
        return USAGE_ERROR
    except (DataError, ValueError, OSError) as error:
        print(f"eval {command}: {error}", file=sys.stderr)
        return 1


def _run(arguments: Sequence[str]) -> int:
    from eval.settings import EvalSettings

    line = parse_command_line(arguments)
    if line.should_help:
        print("usage: python -m eval run --model M --benchmarks A,B [--config FILE.yaml] [flags]\n")
        for name, field in EvalSettings.model_fields.items():
            default = "required" if field.is_required() else f"default {field.default}"
            print(f"  --{name.replace('_', '-'):<24}{field.description} ({default})")
        return 0
    settings = build_config(EvalSettings, line)
    from eval.run import run

    run(settings)
    return 0


def _compare(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m eval compare", description="Two evaluations, paired by question.")
    parser.add_argument("before", type=Path, help="a result folder, or its samples.jsonl")
    parser.add_argument("after", type=Path)
    parser.add_argument("--allow-subset", action="store_true", help="compare the questions that both have")
    parsed = parser.parse_args(arguments)
    from eval.compare import compare, read_answers, render

    before, after = (
        read_answers(path / "samples.jsonl" if path.is_dir() else path) for path in (parsed.before, parsed.after)
    )
    common = [name for name in before if name in after]
    if not common:
        raise ValueError(f"no benchmark in common: {', '.join(before)} and {', '.join(after)}")
    for name in common:
        print(render(compare(before[name], after[name], parsed.allow_subset)), end="\n\n")
    return 0


def _grade(arguments: Sequence[str]) -> int:
    from eval import grade

    parser = argparse.ArgumentParser(prog="python -m eval grade", description=grade.__doc__)
    grade.add_arguments(parser)
    return grade.main(parser.parse_args(arguments))


def _report(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m eval report", description="Write report.html again.")
    parser.add_argument("folder", type=Path, help="a result folder")
    folder = parser.parse_args(arguments).folder
    from eval.report import write_report

    print(write_report(folder))
    return 0


def _list(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m eval list", description="The benchmarks that can be named.")
    parser.parse_args(arguments)
    from eval.benchmarks import load_table

    for name, entry in load_table().items():
        print(f"{name:<20}{entry.title}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
