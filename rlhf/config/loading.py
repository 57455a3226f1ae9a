"""One YAML file and `--section.key value` overrides become a checked configuration, or a short list of what to
repair."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from pydantic import ValidationError

from rlhf.config import overrides
from rlhf.config.division import Division, division_from_environment, division_from_text
from rlhf.config.problems import unknown_keys, value_problems
from rlhf.config.rules import check_world_size
from rlhf.config.section import Section
from rlhf.config.sharding import sharding_problems
from rlhf.config.sources import CommandLine, ConfigError, Dumper, parse_command_line, read_yaml

SectionT = TypeVar("SectionT", bound=Section)
USAGE_ERROR = 2


def build_config(schema: type[SectionT], line: CommandLine) -> SectionT:
    """The configuration that a parsed command line stands for.

    Raises ConfigError with every problem found: unknown keys, missing and illegal values, contradictions between
    sections.
    """
    content, places = read_yaml(line.config_file) if line.config_file is not None else ({}, {})
    tree, problems = overrides.apply_flags(schema, content, line.flags)
    places = {**places, **{flag.path: str(flag) for flag in line.flags}}
    overrides.complete_types(schema, tree)
    overrides.fit_flag_values(schema, tree, line.flags)
    unknown = unknown_keys(schema, tree, places)
    try:
        config = schema.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(problems + unknown + value_problems(schema, error, tree, places)) from None
    if problems or unknown:
        raise ConfigError(problems + unknown)
    return config


def parse_config(schema: type[SectionT], arguments: Sequence[str]) -> SectionT:
    """`build_config` on raw arguments such as ["--config", "run.yaml", "--batch.steps", "10"]."""
    return build_config(schema, parse_command_line(arguments))


def load_config(schema: type[SectionT], arguments: Sequence[str] | None = None) -> SectionT:
    """What a recipe calls first: parse, check, and answer `--help` and `--dry-run`.

    `arguments` are those after the program's name (default: sys.argv[1:]). The number of ranks is read from
    WORLD_SIZE, which `accelerate launch` and `torchrun` set, and in `--dry-run METHOD:RANKS` from there. Leaves the
    process with status 0 after `--help` or `--dry-run`, and with status 2 and all problems on stderr if the
    configuration cannot be used.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    is_first_rank = int(os.environ.get("RANK", "0")) == 0
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    try:
        line = parse_command_line(arguments)
        if line.should_help:
            if is_first_rank:
                from rlhf.config.help import print_help

                print_help(schema, line.help_section)
            raise SystemExit(0)
        config = build_config(schema, line)
        division = None
        if line.should_dry_run:
            division = _planned_division(config, line)
            world_size = division.ranks
        if hasattr(config, "batch"):
            check_world_size(config, world_size)
    except ConfigError as error:
        _leave(error, is_first_rank)
    if division is not None:
        if is_first_rank:
            from rlhf.config.dry_run import print_dry_run

            print_dry_run(config, division, line.planned_device)
        raise SystemExit(0)
    return config


def _planned_division(config: Section, line: CommandLine) -> Division:
    """What a dry run plans for: `METHOD:RANKS`, or the launch as it is. Raises ConfigError where the recipe cannot be
    divided so."""
    text = line.planned_division
    division = division_from_environment(os.environ) if text is None else division_from_text(text)
    if hasattr(config, "optimizer") and (problems := sharding_problems(config, division.sharding)):
        raise ConfigError(problems)
    return division


def _leave(error: ConfigError, is_first_rank: bool) -> NoReturn:
    if is_first_rank:
        count = len(error.problems)
        print(f"The configuration has {count} problem{'s' if count > 1 else ''}:", file=sys.stderr)
        for problem in error.problems:
            print(f"  - {problem}", file=sys.stderr)
        print("See `--help`, or `--help SECTION`.", file=sys.stderr)
    raise SystemExit(USAGE_ERROR)


def to_dict(config: Section) -> dict[str, Any]:
    """Plain data (dicts, lists, numbers, text) with every field; `type(config).model_validate` restores an equal
    configuration."""
    return config.model_dump(mode="json")


def to_yaml(config: Section) -> str:
    """The whole configuration as YAML, which `--config` reads back to an equal configuration."""
    return yaml.dump(to_dict(config), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)


def save_yaml(config: Section, path: Path) -> None:
    """Write `to_yaml(config)` to `path`."""
    path.write_text(to_yaml(config), encoding="utf-8")


__all__ = ["ConfigError", "build_config", "load_config", "parse_config", "save_yaml", "to_dict", "to_yaml"]
