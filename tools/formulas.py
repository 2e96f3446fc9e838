"""A Markdown extension that typesets formulas when the site is built, so that no page fetches a script or a font.

`$...$` becomes MathML in the line and `$$...$$` a formula of its own; browsers draw MathML themselves. A formula that
cannot be read fails the build.
"""

from __future__ import annotations

import re
from typing import Any

from latex2mathml.converter import convert
from markdown import Extension, Markdown
from markdown.inlinepatterns import InlineProcessor

BLOCK = r"\$\$(.+?)\$\$"
INLINE = r"(?<![\\$\w])\$(?![\s$])([^$\n]+?)(?<!\s)\$(?![\w$])"
_PRIORITY = 185  # after `code` (190), before backslash escapes (180)


class Formulas(Extension):
    """Both kinds of formulas, as Python-Markdown extends itself."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Register them."""
        md.inlinePatterns.register(_Formula(BLOCK, md, "block"), "formula-block", _PRIORITY + 1)
        md.inlinePatterns.register(_Formula(INLINE, md, "inline"), "formula", _PRIORITY)


class _Formula(InlineProcessor):
    """One kind of formula; `display` is MathML's own word for it."""

    def __init__(self, pattern: str, md: Markdown, display: str) -> None:
        super().__init__(pattern, md)
        self.display = display

    def handleMatch(self, m: re.Match[str], data: str) -> tuple[str, int, int]:  # type: ignore[override]
        """Put the formula into the stash, as its text must not be read as Markdown again."""
        return self.md.htmlStash.store(convert(m.group(1).strip(), display=self.display)), m.start(0), m.end(0)


def makeExtension(**settings: Any) -> Formulas:
    """What Python-Markdown calls."""
    return Formulas(**settings)
