"""What a configuration schema contains: sections, their variants by `type`, fields, and what a field accepts."""

import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from rlhf.config.section import Section

COMPARISONS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "text", type(None): "null"}


def alternatives(annotation: Any) -> list[Any]:
    """The members of a (nested, annotated, optional) union; a plain annotation is its only member."""
    if get_origin(annotation) is Annotated:
        return alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [member for argument in get_args(annotation) for member in alternatives(argument)]
    return [annotation]


def tag(section: type[Section]) -> str | None:
    """The value of the section's `type` field, or None where it has none."""
    field = section.model_fields.get("type")
    values = get_args(field.annotation) if field is not None and get_origin(field.annotation) is Literal else ()
    return values[0] if len(values) == 1 else None


def variants(annotation: Any) -> dict[str | None, type[Section]]:
    """The sections that an annotation admits, by their `type`; empty for a plain value."""
    found = [m for m in alternatives(annotation) if isinstance(m, type) and issubclass(m, Section)]
    return {tag(section): section for section in found}


def item_annotation(annotation: Any) -> Any | None:
    """What a list holds, or None where the annotation admits no list."""
    for member in alternatives(annotation):
        if get_origin(member) is list:
            return get_args(member)[0]
    return None


def accepts_none(annotation: Any) -> bool:
    return type(None) in alternatives(annotation)


def default_type(field: FieldInfo) -> str | None:
    """The `type` of a section field's default, or None where the field must be given."""
    return tag(type(field.default)) if isinstance(field.default, Section) else None


def select(annotation: Any, value: Any) -> type[Section] | None:
    """The section that `value` (a dict with its `type` filled in) stands for; None if it cannot be told."""
    choices = variants(annotation)
    if len(choices) == 1:
        return next(iter(choices.values()))
    return choices.get(value.get("type")) if isinstance(value, dict) else None


def has_default(field: FieldInfo) -> bool:
    return not field.is_required()


def default_value(field: FieldInfo) -> Any:
    """The field's default, with factories called; raises ValueError where there is none."""
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined:
        raise ValueError("the field has no default")
    return value


def type_name(annotation: Any) -> str:
    """A short name for `--help`: `int`, `float | null`, `a | b | c`, `list of text`."""
    parts = []
    for member in alternatives(annotation):
        if get_origin(member) is Literal:
            parts += [str(value) for value in get_args(member)]
        elif get_origin(member) is list:
            parts.append(f"list of ({type_name(get_args(member)[0])})")
        elif get_origin(member) is tuple:
            parts.append(f"[{', '.join(type_name(argument) for argument in get_args(member))}]")
        elif isinstance(member, type) and issubclass(member, Section):
            parts.append(tag(member) or "section")
        else:
            parts.append({type(None): "null", str: "text"}.get(member, getattr(member, "__name__", str(member))))
    return " | ".join(parts)


def bounds(field: FieldInfo) -> str:
    """The field's numeric or length limits, e.g. `>= 1, < 2`; empty if it has none."""
    parts = []
    for constraint in field.metadata:
        parts += [
            f"{sign} {getattr(constraint, key)}"
            for key, sign in COMPARISONS.items()
            if getattr(constraint, key, None) is not None
        ]
        if getattr(constraint, "min_length", None):
            parts.append(f"with at least {constraint.min_length} entry")
        if getattr(constraint, "pattern", None):
            parts.append(f"matching {constraint.pattern}")
    return ", ".join(parts)


def expected(field: FieldInfo) -> str:
    """What a field accepts, as the end of the sentence `must be ...`."""
    parts = []
    for member in alternatives(field.annotation):
        if get_origin(member) is Literal:
            parts.append("one of " + ", ".join(str(value) for value in get_args(member)))
        elif isinstance(member, type) and issubclass(member, Section):
            parts.append("a section" if tag(member) is None else f"a section of type {tag(member)}")
        elif get_origin(member) is list:
            parts.append(f"a list of {type_name(get_args(member)[0])}")
        elif get_origin(member) is tuple:
            items = get_args(member)
            limits = bounds(FieldInfo.from_annotation(items[0]))
            parts.append(f"a list of {len(items)} values" + (f", each {limits}" if limits else ""))
        else:
            parts.append(NAMES.get(member, str(member)))
    limits = bounds(field)
    return " or ".join(dict.fromkeys(parts)) + (f" {limits}" if limits else "")


def leaf_paths(schema: type[Section], prefix: str = "") -> Iterator[str]:
    """The dotted path of every field that is not a section, over all variants."""
    for name, field in schema.model_fields.items():
        sections = variants(field.annotation)
        if not sections:
            yield prefix + name
        for section in sections.values():
            yield from leaf_paths(section, f"{prefix}{name}.")
