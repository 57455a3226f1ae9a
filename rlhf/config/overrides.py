"""Puts flags over a file's content, and completes what a person may leave out (`type` of a default section)."""

import copy
from collections.abc import Sequence
from typing import Any

from rlhf.config import schema as s
from rlhf.config.section import Section
from rlhf.config.sources import Flag, KeyPath, dotted


def apply_flags(
    schema: type[Section], content: dict[str, Any], flags: Sequence[Flag]
) -> tuple[dict[str, Any], list[str]]:
    """`content` with the flags' values in place, and what is wrong with the flags.

    A flag that changes a section's `type` keeps the file's keys that the new type also has, and drops the other keys
    of the old type.
    """
    tree, problems = copy.deepcopy(content), []
    before = complete_types(schema, copy.deepcopy(content))
    for flag in flags:
        problem = _put(schema, tree, flag)
        if problem:
            problems.append(problem)
    given = {flag.path for flag in flags}
    for flag in flags:
        if len(flag.path) > 1 and flag.path[-1] == "type":
            _drop_keys_of_old_type(schema, tree, before, flag, given)
    return tree, problems


def _put(schema: type[Section], tree: dict[str, Any], flag: Flag) -> str | None:
    """Set one value; returns what is wrong, or None."""
    place: Any = tree
    for depth, part in enumerate(flag.path):
        is_last = depth == len(flag.path) - 1
        is_list_next = not is_last and isinstance(flag.path[depth + 1], int)
        if isinstance(place, list):
            if not isinstance(part, int) or part > len(place):
                name = dotted(flag.path[:depth])
                return f"{flag}: {name} is a list of {len(place)}; use its positions 0 to {len(place)}"
            if part == len(place):
                place.append({})
        elif not isinstance(place, dict):
            return f"{flag}: {dotted(flag.path[:depth])} is {place!r}, which has no parts"
        if is_last:
            place[part] = flag.value
        else:
            if isinstance(place, dict) and place.get(part) is None:
                place[part] = _default_list(schema, tree, flag.path[: depth + 1]) if is_list_next else {}
            place = place[part]
    return None


def _default_list(schema: type[Section], tree: dict[str, Any], path: KeyPath) -> list[Any]:
    """A copy of the default of the list under `path`, so that a position in it can be changed; else an empty list."""
    section = s.select(annotation_at(schema, tree, path[:-1]), value_at(tree, path[:-1]))
    field = section.model_fields.get(str(path[-1])) if section else None
    if field is None or s.item_annotation(field.annotation) is None or not s.has_default(field):
        return []
    entries = s.default_value(field) or []
    return [entry.model_dump(mode="json") if isinstance(entry, Section) else entry for entry in entries]


def _drop_keys_of_old_type(
    schema: type[Section], tree: dict[str, Any], before: dict[str, Any], flag: Flag, given: set[KeyPath]
) -> None:
    section_path = flag.path[:-1]
    choices = s.variants(annotation_at(schema, before, section_path))
    old_value, value = value_at(before, section_path), value_at(tree, section_path)
    if not isinstance(old_value, dict) or not isinstance(value, dict):
        return
    old, new = choices.get(old_value.get("type")), choices.get(value.get("type"))
    if old is None or new is None or old is new:
        return
    for key in [k for k in value if k in old.model_fields and k not in new.model_fields]:
        if not any(path[: len(section_path) + 1] == (*section_path, key) for path in given):
            del value[key]


def value_at(tree: Any, path: KeyPath) -> Any:
    """The value under `path`, or None."""
    for part in path:
        if isinstance(tree, dict):
            tree = tree.get(part)
        elif isinstance(tree, list) and isinstance(part, int) and part < len(tree):
            tree = tree[part]
        else:
            return None
    return tree


def annotation_at(schema: type[Section], tree: Any, path: KeyPath) -> Any:
    """The annotation of the field under `path`, following the `type` that `tree` names; None where there is no such
    field."""
    annotation: Any = schema
    for part in path:
        if isinstance(part, int):
            annotation = s.item_annotation(annotation)
        else:
            section = s.select(annotation, tree)
            annotation = section.model_fields[part].annotation if section and part in section.model_fields else None
        if annotation is None:
            return None
        tree = value_at(tree, (part,))
    return annotation


def complete_types(schema: type[Section], tree: dict[str, Any]) -> dict[str, Any]:
    """Name the default's `type` in sections that leave it out, and drop sections left empty; changes and returns
    `tree`."""
    for name, field in schema.model_fields.items():
        if name not in tree:
            continue
        value = tree[name]
        if value is None and s.variants(field.annotation) and not s.accepts_none(field.annotation):
            del tree[name]
            continue
        item = s.item_annotation(field.annotation)
        entries = (
            [(item, v) for v in value] if item is not None and isinstance(value, list) else [(field.annotation, value)]
        )
        for annotation, entry in entries:
            if not isinstance(entry, dict):
                continue
            if "type" not in entry and len(s.variants(annotation)) > 1 and s.default_type(field):
                entry["type"] = s.default_type(field)
            section = s.select(annotation, entry)
            if section is not None:
                complete_types(section, entry)
    return tree


def fit_flag_values(schema: type[Section], tree: dict[str, Any], flags: Sequence[Flag]) -> None:
    """Read a flag as its field wants it: `--run.name 12` is text, `--tracking.trackers wandb` a list of one.
    Changes `tree`."""
    for flag in flags:
        annotation = annotation_at(schema, tree, flag.path)
        parent = value_at(tree, flag.path[:-1])
        if annotation is None or flag.text is None or not isinstance(parent, dict | list):
            continue
        members = s.alternatives(annotation)
        value = flag.value
        if str in members and value is not None and not isinstance(value, str):
            parent[flag.path[-1]] = flag.text
        elif (
            len(members) == 1 and s.item_annotation(annotation) is not None and not isinstance(value, list | type(None))
        ):
            parent[flag.path[-1]] = [value]
