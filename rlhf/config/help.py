"""`--help`: every section and field with its type, default and meaning, read from the schema itself."""

import importlib.util
import json
import re
from typing import Any

from pydantic.fields import FieldInfo

from rlhf.config import schema as s
from rlhf.config.section import Section
from rlhf.config.sources import ConfigError

USAGE = """Usage: --config FILE.yaml [--section.key value ...]
  --help [SECTION]   this text, or one section (--help batch)
  --dry-run [PLAN]   check everything, print the resolved configuration, batch table and memory plan, and stop;
                     PLAN is a device (cpu or cuda), METHOD:RANKS (ddp, fsdp2, zero1, zero2, zero3 or zero3_offload;
                     e.g. zero3:8), or both (cuda,zero3:8), by default what this machine has and this launch asks for"""


def print_help(schema: type[Section], section: str | None = None) -> None:
    """Print the help of `schema`, or of one top-level section; in colour on a terminal if rich is installed.

    Raises ConfigError for an unknown section.
    """
    text = render_help(schema, section)
    if importlib.util.find_spec("rich") is None:
        print(text)
        return
    from rich.console import Console
    from rich.text import Text

    styled = Text(text)
    styled.highlight_regex(r"(?m)^\S[^\n]*$", "bold cyan")
    styled.highlight_regex(re.compile(r"(?m)^ {2,}--\S+"), "bold")
    styled.highlight_regex(re.compile(r"\(required\)"), "bold red")
    Console(highlight=False, soft_wrap=True).print(styled)


def render_help(schema: type[Section], section: str | None = None) -> str:
    """The help as plain text; `section` names a top-level section. Raises ConfigError for an unknown one."""
    if section is not None and section not in schema.model_fields:
        raise ConfigError(
            [f"--help {section}: there is no such section; sections are {', '.join(schema.model_fields)}"]
        )
    lines = [] if section else [_summary(schema), "", USAGE, ""]
    for name, field in schema.model_fields.items():
        if section in (None, name):
            lines += [*_section_lines(name, field), ""]
    return "\n".join(lines).rstrip()


def _section_lines(name: str, field: FieldInfo) -> list[str]:
    choices = s.variants(field.annotation)
    if len(choices) == 1:
        only = next(iter(choices.values()))
        return [f"{name}: {_summary(only)}", *_field_lines(only, f"{name}.", "  ")]
    default = s.default_type(field)
    remark = f"default {default}" if default else "none by default" if s.has_default(field) else "required"
    lines = [f"{name}: one of {', '.join(str(choice) for choice in choices)} ({remark})"]
    for choice, variant in choices.items():
        lines += [f"  {name}.type = {choice}: {_summary(variant)}", *_field_lines(variant, f"{name}.", "    ")]
    return lines


def _field_lines(section: type[Section], prefix: str, indent: str) -> list[str]:
    lines = []
    for name, field in section.model_fields.items():
        if name == "type" and s.tag(section) is not None:
            continue
        item = s.item_annotation(field.annotation)
        choices = s.variants(item if item is not None else field.annotation)
        meaning = " ".join((field.description or "").split())
        default = _default(field) + _presets(section, name, field)
        lines.append(f"{indent}--{prefix}{name}  {_type(field)}  {default}".rstrip())
        if meaning:
            lines.append(f"{indent}    {meaning}")
        place = f"{prefix}{name}.N." if item is not None else f"{prefix}{name}."
        if len(choices) == 1:
            lines += _field_lines(next(iter(choices.values())), place, indent + "  ")
        elif choices and _is_told_elsewhere(section, name):
            lines.append(f"{indent}    The same fields as in section `data`.")
        else:
            for choice, variant in choices.items():
                lines += [
                    f"{indent}  type = {choice}: {_summary(variant)}",
                    *_field_lines(variant, place, indent + "    "),
                ]
    return lines


def _is_told_elsewhere(section: type[Section], name: str) -> bool:
    """The evaluation's prompt source has the fields of the training's, which are listed once."""
    from rlhf.config.data import DatasetConfig

    return DatasetConfig in s.variants(section.model_fields[name].annotation).values()


def _type(field: FieldInfo) -> str:
    limits = s.bounds(field)
    return s.type_name(field.annotation) + (f" ({limits})" if limits else "")


def _default(field: FieldInfo) -> str:
    if not s.has_default(field):
        return "(required)"
    value = s.default_value(field)
    if isinstance(value, Section):
        return ""
    if isinstance(value, list) and any(isinstance(entry, Section) for entry in value):
        return f"[default: {', '.join(str(s.tag(type(entry))) for entry in value)}]"
    return f"[default: {_plain(value)}]"


def _presets(section: type[Section], name: str, field: FieldInfo) -> str:
    """What the section's presets set the field to, where that is not the default."""
    presets = getattr(section, "PRESETS", {})
    others = {preset: values[name] for preset, values in presets.items() if name in values}
    told = ", ".join(f"{preset} {_plain(value)}" for preset, value in others.items() if value != field.default)
    return f" [preset: {told}]" if told else ""


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _summary(section: type[Section]) -> str:
    """The first paragraph of the section's docstring on one line."""
    return " ".join((section.__doc__ or section.__name__).strip().split("\n\n")[0].split())
