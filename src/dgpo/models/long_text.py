"""Prompts that are longer than a model's text encoders read: what is beyond that is ignored, and a run says so once.

diffusers says it of each such prompt, with all the rest of its text, even where another encoder reads on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from dgpo.models.base import VelocityModel

_SHOWN = 60
"""Characters of a prompt that is shown."""
_CUT = ("The following part of your input was truncated", "Token indices sequence length is longer")


def long_prompts(model: VelocityModel, prompts: Iterable[str]) -> list[str]:
    """What a model has to say of them; one of your own need not."""
    asked = getattr(model, "long_prompts", None)
    return [] if asked is None else asked(prompts)


def longer_than(pipeline: Any, limits: Mapping[str, int], prompts: Iterable[str]) -> list[str]:
    """A line on the prompts that are longer than every text encoder reads; none where each is read whole.

    limits: name of a tokenizer -> tokens that its encoder reads, as `Family.text_limits` says
    """
    lengths = dict.fromkeys(prompts, 0)
    total = len(lengths)
    for name, limit in sorted(limits.items(), key=lambda item: item[1]):
        if lengths:  # of those that are too long for the encoders before
            rows = getattr(pipeline, name)([*lengths], verbose=False).input_ids
            lengths = {prompt: len(row) for prompt, row in zip(lengths, rows) if len(row) > limit}
    if not lengths or not limits:
        return []
    longest = max(lengths, key=lengths.__getitem__)
    text = longest if len(longest) <= _SHOWN else f"{longest[:_SHOWN]}..."
    return [
        f"{len(lengths)} of {total} prompts {'are' if lengths.keys() - {longest} else 'is'} longer than the "
        f"{max(limits.values())} tokens of text that the model reads; what comes after them is ignored. The longest "
        f"has {lengths[longest]:,} tokens: {text!r}"
    ]


@contextmanager
def without_cut_text(pipeline: Any) -> Iterator[None]:
    """Without the libraries' own lines on text that is cut off."""
    names = ("transformers.tokenization_utils_base", *(kind.__module__ for kind in type(pipeline).__mro__))
    loggers = [logging.getLogger(name) for name in names]
    for logger in loggers:
        logger.addFilter(_tells_more)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(_tells_more)


def _tells_more(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_CUT)
