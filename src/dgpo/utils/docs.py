"""The docstrings that stand below the fields of a dataclass, read from its source."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap


def field_docs(kind: type, length: int) -> dict[str, str]:
    """Field -> its docstring in one line: as many whole sentences as `length` takes, and at least the first.

    Nothing of a class whose source is not here, as in a notebook.
    """
    docs: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError, SyntaxError):
            continue
        assert isinstance(tree.body[0], ast.ClassDef)
        docs |= _documented(tree.body[0])
    return {name: _first(text, length) for name, text in docs.items()}


def _documented(node: ast.ClassDef) -> dict[str, str]:
    """The texts that follow an annotated name."""
    return {
        field.target.id: inspect.cleandoc(text.value.value)
        for field, text in zip(node.body, node.body[1:])
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }


def _first(text: str, length: int) -> str:
    first, *rest = re.split(r"(?<=\.)\s+", " ".join(text.split()))
    for sentence in rest:
        if len(first) + 1 + len(sentence) > length:
            break
        first += f" {sentence}"
    return first
