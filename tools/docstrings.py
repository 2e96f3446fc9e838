"""A Griffe extension that shows this project's docstrings as they are meant: a line `name: what it is` is an entry.

It rewrites only what the site shows: such lines, with those that continue them, become a list.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

ENTRY = re.compile(r"^(\w+): (?=\S)")


class Entries(griffe.Extension):
    """Griffe calls this for every function, class and attribute that it has read."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the object's docstring."""
        if obj.docstring is not None:
            obj.docstring.value = as_list(obj.docstring.value)


def as_list(text: str) -> str:
    """The text with its entries as list items; lines that start with `Raises` are a paragraph of their own."""
    lines: list[str] = []
    inside = False
    for line in text.splitlines():
        entry = ENTRY.match(line)
        if (entry and not inside) or (inside and line.startswith("Raises ")):
            lines.append("")
        inside = bool(entry) or (inside and bool(line.strip()) and not line.startswith("Raises "))
        lines.append(ENTRY.sub(r"- `\1`: ", line))
    return "\n".join(lines)
