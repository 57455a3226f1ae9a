"""How a report becomes one HTML file that needs no other, and how text that nobody vouches for is shown in it.

The look is in `page.html.j2`, which a report's template extends, and in the macros of `parts.html.j2`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from rlhf.training.progress import cut, duration, printable
from rlhf.training.run_folder import write_atomically
from rlhf.training.statistics import format_share

LONGEST_TEXT = 4000
"""Characters of a prompt or completion that a report shows, half of them its end; samples.jsonl has all of them."""


@dataclass(frozen=True)
class Check:
    """One question that a careful reader asks, with its answer in numbers."""

    passed: bool
    text: str


def write_page(path: Path, template: Path, values: Mapping[str, Any]) -> Path:
    """Render `template` with `values` to `path` and return it; every string is made printable and escaped.

    The template may extend and import the files beside this module. Raises jinja2.UndefinedError for a name that
    `values` lacks, RunFolderError when the file cannot be written.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, Path(__file__).parent]), autoescape=True,
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_shown,
    )  # fmt: skip
    environment.globals |= {
        "percent": format_share, "duration": duration, "gib": lambda size: f"{size / 2**30:.2f} GiB",
        "significant": lambda value: f"{value:.4g}" if isinstance(value, float) else str(value), "cut": cut,
        "longest_text": LONGEST_TEXT,
    }  # fmt: skip
    page = environment.get_template(template.name).render(values)
    # A chart may name what it draws by a lone surrogate, which has no UTF-8 form.
    write_atomically(path, [page.encode("utf-8", "replace")])
    return path


def _shown(value: Any) -> Any:
    """Strings without the characters that HTML forbids, or that reverse what is read: a wrong answer as the right."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return printable(value.replace("\r\n", "\n").expandtabs(4), keep_newlines=True)
