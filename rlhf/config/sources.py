"""Reads what the user wrote, a YAML file and `--section.key value` flags, and remembers where each value came from."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

KeyPath = tuple[str | int, ...]


class ConfigError(ValueError):
    """The configuration cannot be used; `problems` holds one sentence for each thing to repair."""

    def __init__(self, problems: Sequence[str]):
        self.problems = list(dict.fromkeys(problems))
        super().__init__("\n".join(self.problems))


# YAML 1.2's core schema. YAML 1.1, PyYAML's default, reads 1e-6 as text, a date-like run name as a date, and `no` as
# false.
RESOLVERS: dict[str, tuple[str, str]] = {
    "tag:yaml.org,2002:bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "tag:yaml.org,2002:null": (r"~|null|Null|NULL|", "~nN\0"),
    "tag:yaml.org,2002:int": (r"[-+]?[0-9]+", "-+0123456789"),
    "tag:yaml.org,2002:float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    "tag:yaml.org,2002:merge": (r"<<", "<"),
}


class Loader(yaml.SafeLoader):
    """SafeLoader with the core schema's scalars; refuses a key that is written twice."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            if key.value in seen and key.value != "<<":
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is also on line {seen[key.value]}: remove one", key.start_mark
                )
            seen[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)


class Dumper(yaml.SafeDumper):
    """Writes what `Loader` reads back to the same value."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # YAML takes these for line breaks and folds them into spaces; only the double-quoted style escapes them
    style = '"' if any(line_break in text for line_break in "\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


Dumper.add_representer(str, _represent_text)
Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))
Loader.add_constructor("tag:yaml.org,2002:float", lambda loader, node: float(re.sub(r"\.(?=[inIN])", "", node.value)))
for _tag, (_pattern, _first) in RESOLVERS.items():
    for _class in (Loader, Dumper):
        _class.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), ["" if c == "\0" else c for c in _first])


@dataclass(frozen=True)
class Flag:
    """One `--section.key value` override."""

    path: KeyPath
    text: str | None
    """None: the flag stands alone, which means true."""

    @property
    def value(self) -> Any:
        return True if self.text is None else yaml.load(self.text, Loader)

    def __str__(self) -> str:
        return "--" + dotted(self.path)


@dataclass
class CommandLine:
    """The arguments of a recipe, taken apart."""

    config_file: str | None = None
    flags: list[Flag] = field(default_factory=list)
    should_help: bool = False
    help_section: str | None = None
    should_dry_run: bool = False
    planned_device: str | None = None
    """`--dry-run cuda` plans the memory for a GPU on a machine that has none."""
    planned_division: str | None = None
    """`--dry-run zero3:8` plans for a launch that is not this one; `METHOD:RANKS`."""


def dotted(path: Sequence[str | int]) -> str:
    return ".".join(str(part) for part in path)


def parse_command_line(arguments: Sequence[str]) -> CommandLine:
    """Take `arguments` apart; raises ConfigError for anything that is not `--name [value]` or `--name=value`."""
    line, problems, position = CommandLine(), [], 0
    while position < len(arguments):
        argument = arguments[position]
        position += 1
        if argument == "-h":
            argument = "--help"
        if not argument.startswith("--") or argument == "--":
            problems.append(f"unexpected argument {argument!r}: write --section.key value, or put a list as [a,b]")
            continue
        name, has_equals, text = argument[2:].partition("=")
        value: str | None = text if has_equals else None
        if value is None and position < len(arguments) and not arguments[position].startswith("--"):
            value = arguments[position]
            position += 1
        if name == "help" or name.startswith("help."):
            line.should_help = True
            line.help_section = name.removeprefix("help").removeprefix(".") or value
        elif name in ("dry-run", "dry_run"):
            line.should_dry_run = True
            for part in [] if value is None else value.split(","):
                if part in ("cpu", "cuda"):
                    line.planned_device = part
                elif ":" in part:
                    line.planned_division = part
                else:
                    problems.append(
                        f"--dry-run {value}: plan for cpu or cuda, for METHOD:RANKS (e.g. zero3:8), or for both "
                        "(cuda,zero3:8)"
                    )
        elif name == "config":
            if value is None or line.config_file is not None:
                problems.append(
                    "--config needs one file" if value is None else "--config is given twice: merge the files"
                )
            line.config_file = value
        else:
            path = tuple(int(part) if part.isdigit() else part.replace("-", "_") for part in name.split("."))
            try:
                flag = Flag(path, value)
                _ = flag.value
                line.flags.append(flag)
            except yaml.YAMLError as error:
                problems.append(f"--{name} {value}: not a YAML value ({_yaml_reason(error)}); quote it")
    if problems:
        raise ConfigError(problems)
    return line


def read_yaml(file: str) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    """The file's content, and `file:line` for each path in it. Raises ConfigError if it is missing or not a mapping."""
    path = Path(file)
    if not path.is_file():
        beside = sorted(str(p) for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        raise ConfigError([f"--config {file}: no such file" + (f"; there are {', '.join(beside)}" if beside else "")])
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader)
        content = yaml.load(text, Loader)
    except UnicodeDecodeError as error:
        raise ConfigError([f"{file}: not UTF-8 text ({error.reason} at byte {error.start})"]) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file}:{mark.line + 1}" if mark is not None else file
        raise ConfigError([f"{where}: not valid YAML ({_yaml_reason(error)})"]) from error
    if content is None:
        return {}, {}
    if not isinstance(content, dict):
        raise ConfigError([f"{file}: must hold `section:` blocks, not {type(content).__name__}"])
    places: dict[KeyPath, str] = {}
    _collect_places(node, (), file, places)
    return content, places


def _collect_places(node: yaml.Node, path: KeyPath, file: str, places: dict[KeyPath, str]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            places[(*path, key.value)] = f"{file}:{key.start_mark.line + 1}"
            _collect_places(value, (*path, key.value), file, places)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            places[(*path, index)] = f"{file}:{value.start_mark.line + 1}"
            _collect_places(value, (*path, index), file, places)


def _yaml_reason(error: yaml.YAMLError) -> str:
    return str(getattr(error, "problem", None) or error).splitlines()[0]
