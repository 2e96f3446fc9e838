"""PyTorch for what a config is made of: imported at its first use, for a mistake in a field is told before its seconds.

`from dgpo.utils.late import torch` stands for `import torch`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
else:

    class _Late:
        def __getattr__(self, name: str) -> Any:
            return getattr(import_module("torch"), name)

    torch = _Late()

__all__ = ["torch"]
