"""The side of an image and the length of a text, refused where the model cannot draw or read them."""

from __future__ import annotations

from dgpo.errors import UserError


def fitting_side(resolution: int | None, own: int, multiple: int, largest: int | None = None) -> int:
    """The side in pixels, the model's own if None. UserError where it is no multiple of `multiple` or too large."""
    side = own if resolution is None else resolution
    if side % multiple or side <= 0 or (largest is not None and side > largest):
        limit = f" up to {largest}" if largest else ""
        raise UserError(f"resolution={side} does not fit this model: it draws multiples of {multiple} pixels{limit}")
    return side


def fitting_length(max_sequence_length: int | None, own: int, largest: int, least: int = 1) -> int:
    """The number of text tokens, the pipeline's own if None. UserError where the pipeline would not take it."""
    length = own if max_sequence_length is None else max_sequence_length
    if not least <= length <= largest:
        raise UserError(
            f"max_sequence_length={length} does not fit this model: it reads {least} to {largest} text tokens"
        )
    return length
