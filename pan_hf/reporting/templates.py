"""Templates that show names as they are: what others have written formats nothing, links nowhere and runs nothing.

Names of senses, environments, planners and repositories may be anybody's. HTML templates are escaped by Jinja;
Markdown ones by `escaped`, each value that is not [`Markdown`] already.
"""

import html
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from pan_hf.extras import extra

with extra("report", "A report"):
    import jinja2

# control characters, line and paragraph separators, and what turns the direction of writing
_UNSHOWN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]+")
# what begins a format or a link within a line, or ends a cell; an underscore between letters begins nothing
_FORMATS = re.compile(r"[\\`*~|\[\]]|(?<![^\W_])_|_(?![^\W_])")


class Markdown(str):
    """Text that is Markdown already."""


def escaped(value: Any) -> Markdown:
    """A value as Markdown that shows it in one line, character by character."""
    if isinstance(value, Markdown):
        return value
    return Markdown(_FORMATS.sub(r"\\\g<0>", html.escape(_UNSHOWN.sub(" ", str(value)), quote=False)))


def code(value: Any) -> Markdown:
    """A value as a span of code, between more backticks than it has in a row."""
    text = _UNSHOWN.sub(" ", str(value)) or " "
    marks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return Markdown(f"{marks}{space}{text}{space}{marks}")


def quoted(text: str) -> Markdown:
    """A text as a literal of Python, which stays within a line of a block of code."""
    return Markdown(json.dumps(text, ensure_ascii=bool(_UNSHOWN.search(text))))


def template(name: str) -> jinja2.Template:
    """A template of `pan_hf/templates`; values are escaped, and a missing one is an error."""
    return _templates(escapes_html=".html" in name).get_template(name)


@cache
def _templates(escapes_html: bool) -> jinja2.Environment:
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent.parent / "templates"),
        autoescape=escapes_html,
        finalize=None if escapes_html else escaped,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters |= {"code": code, "quoted": quoted}
    return templates
