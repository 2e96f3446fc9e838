"""The templates of pages and cards. Text is escaped in those that end in .html.j2; a missing name is an error."""

from __future__ import annotations

from functools import lru_cache

import jinja2

from dgpo.report import words
from dgpo.report.changes import KINDS


@lru_cache
def template(package: str, name: str) -> jinja2.Template:
    """A template that lies in dgpo/`package`. It may extend report/base.html.j2, the look of all pages."""
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader("dgpo", name) for name in (package, "report")]),
        autoescape=jinja2.select_autoescape(("html.j2",)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {name: getattr(words, name) for name in ("seconds", "duration", "plural")}
    environment.globals["kinds"] = {**KINDS, "training": "during training"}
    return environment.get_template(name)
