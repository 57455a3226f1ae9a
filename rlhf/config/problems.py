"""Turns everything that is wrong with a configuration into short sentences: where, what, and what to do."""

import difflib
from typing import Any

from pydantic import ValidationError

from rlhf.config import schema as s
from rlhf.config.overrides import value_at
from rlhf.config.section import Section
from rlhf.config.sources import KeyPath, dotted

Places = dict[KeyPath, str]


def unknown_keys(schema: type[Section], tree: dict[str, Any], places: Places) -> list[str]:
    """One sentence for each key that the schema does not have, with the nearest valid key and all valid ones."""
    return _unknown(schema, schema, tree, (), places)


def _unknown(
    root: type[Section], section: type[Section], tree: dict[str, Any], path: KeyPath, places: Places
) -> list[str]:
    problems = []
    for key, value in tree.items():
        here = (*path, key)
        field = section.model_fields.get(key)
        if field is None:
            problems.append(_unknown_sentence(root, section, here, places))
            continue
        if isinstance(value, bool) and bool not in s.alternatives(field.annotation):
            # pydantic would take true for the number 1
            problems.append(f"{_name(here, places)} = {str(value).lower()}: must be {s.expected(field)}")
            continue
        item = s.item_annotation(field.annotation)
        entries = (
            [((*here, i), item, v) for i, v in enumerate(value)]
            if item is not None and isinstance(value, list)
            else [(here, field.annotation, value)]
        )
        for place, annotation, entry in entries:
            inner = s.select(annotation, entry)
            if inner is not None and isinstance(entry, dict):
                problems += _unknown(root, inner, entry, place, places)
            elif isinstance(entry, dict) and len(s.variants(annotation)) > 1:
                problems.append(_type_sentence(annotation, entry, place, places))
    return problems


def _type_sentence(annotation: Any, entry: dict[str, Any], path: KeyPath, places: Places) -> str:
    choices = [str(choice) for choice in s.variants(annotation)]
    if "type" not in entry:
        return f"{_name(path, places)} needs a `type`: one of {', '.join(choices)} (--{dotted(path)}.type ...)"
    near = _nearest(str(entry["type"]), choices)
    return (
        f"{_name((*path, 'type'), places)} = {_show(entry['type'])}: must be one of {', '.join(choices)}"
        + _did_you_mean(near)
    )


def _unknown_sentence(root: type[Section], section: type[Section], path: KeyPath, places: Places) -> str:
    key, parent = str(path[-1]), dotted(path[:-1])
    names = list(section.model_fields)
    near = _nearest(key, names)
    if near is None:
        # a known field that was put into the wrong section, such as `lr` at the top
        elsewhere = [p for p in dict.fromkeys(s.leaf_paths(root)) if p.rpartition(".")[2] == key]
        elsewhere = elsewhere or [
            p for p in s.leaf_paths(root) if p == _nearest(dotted(path), list(s.leaf_paths(root)))
        ]
        near = elsewhere[0] if elsewhere else None
    else:
        near = f"{parent}.{near}" if parent else near
    owner = f"{parent} ({s.tag(section)})" if s.tag(section) and parent else parent or "the top level"
    owners = _types_with(root, path) if near == dotted(path) else []
    hint = f"; it belongs to {parent}.type {' or '.join(owners)}" if owners else _did_you_mean(near)
    return f"{_name(path, places)}: unknown key{hint}; {owner} has: {', '.join(names)}"


def _types_with(root: type[Section], path: KeyPath) -> list[str]:
    """The types of a top-level section that have the key at `path`."""
    field = root.model_fields.get(str(path[0])) if len(path) == 2 else None
    choices = s.variants(field.annotation) if field is not None else {}
    return [str(choice) for choice, variant in choices.items() if path[1] in variant.model_fields]


# unknown keys and types are told by `unknown_keys`, which knows their neighbours
TOLD_ELSEWHERE = ("extra_forbidden", "union_tag_invalid", "union_tag_not_found")


def value_problems(schema: type[Section], error: ValidationError, tree: dict[str, Any], places: Places) -> list[str]:
    """One sentence for each value that pydantic refused."""
    problems = []
    for detail in error.errors(include_url=False):
        if detail["type"] in TOLD_ELSEWHERE:
            continue
        path, field = _locate(schema, detail["loc"])
        if detail["type"] == "value_error":
            where = _name(path, places) + ": " if path else ""
            problems += [where + line for line in str(detail["ctx"]["error"]).splitlines()]
        elif detail["type"] == "missing" and field is not None:
            choices = s.variants(field.annotation)
            doc = " ".join((field.description or "").split())
            what = f" ({doc})" if doc and not choices else ""
            how = (
                f"--{dotted(path)}.type {'|'.join(str(c) for c in choices)}"
                if len(choices) > 1
                else f"--{dotted(path)} ..."
            )
            if len(choices) == 1:
                section = next(iter(choices.values()))
                how = " ".join(f"--{dotted(path)}.{n} ..." for n, f in section.model_fields.items() if f.is_required())
            problems.append(f"{dotted(path)} is required{what}: give {how}")
        elif field is None:
            problems.append(f"{_name(path, places)}: {detail['msg']}")
        else:
            value = value_at(tree, path)
            sentence = f"{_name(path, places)} = {_show(value)}: must be {s.expected(field)}"
            if isinstance(value, str):
                options = [
                    o
                    for m in s.alternatives(field.annotation)
                    for o in getattr(m, "__args__", ())
                    if isinstance(o, str)
                ]
                sentence += _did_you_mean(_nearest(value, options))
            elif isinstance(value, int | float) and str in s.alternatives(field.annotation):
                sentence += "; put it in quotes"
            problems.append(sentence)
    return problems


def _locate(schema: type[Section], loc: tuple[str | int, ...]) -> tuple[KeyPath, Any]:
    """Pydantic's location without the union tags it inserts, and the field there (None for a section or list entry)."""
    annotation: Any = schema
    path: list[str | int] = []
    field = None
    for part in loc:
        choices = s.variants(annotation)
        if isinstance(part, int) and s.item_annotation(annotation) is not None:
            annotation, field = s.item_annotation(annotation), None
            path.append(part)
        elif len(choices) > 1 and part in choices:
            annotation = choices[part]
        elif len(choices) == 1 and part in (section := next(iter(choices.values()))).model_fields:
            field = section.model_fields[str(part)]
            annotation = field.annotation
            path.append(part)
        else:
            break
    return tuple(path), field


def _name(path: KeyPath, places: Places) -> str:
    """`section.key (file:line)`, `--section.key` for a flag; the nearest known parent's place where the key has
    none."""
    for length in range(len(path), 0, -1):
        place = places.get(path[:length])
        if place is not None:
            return f"--{dotted(path)}" if place.startswith("--") else f"{dotted(path)} ({place})"
    # a section that only a flag for one of its parts brought in
    inner = next((place for key, place in places.items() if key[: len(path)] == path), None)
    return inner or dotted(path)


def _nearest(word: str, names: list[str]) -> str | None:
    """The most similar name; a name that contains the word, or the reverse, counts as similar."""
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    inside = [name for name in names if min(len(word), len(name)) > 2 and (word in name or name in word)]
    return (close or inside or [None])[0]


def _did_you_mean(name: str | None) -> str:
    return f"; did you mean {name}?" if name else ""


def _show(value: Any) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
