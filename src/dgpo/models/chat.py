"""The chat template in which some text encoders read a prompt."""

from __future__ import annotations

from typing import Any

from dgpo.errors import UserError

_PROMPT = "a cat"


def require_chat_template(tokenizer: Any) -> None:
    """Whether it is there and can be filled is otherwise seen at the first prompt."""
    try:
        if _PROMPT not in _filled(tokenizer):
            raise ValueError("it leaves the prompt out")
    except Exception as error:  # of the template's own language too
        raise UserError(
            f"the tokenizer's chat template is missing or damaged ({error}): download or save the pipeline again, with "
            "chat_template.jinja or its entry in tokenizer_config.json"
        ) from error


def room_for_prompt(tokenizer: Any, length: int) -> int:
    """The tokens of a text of this length that what the template puts before the prompt leaves for it."""
    return length - len(tokenizer(_filled(tokenizer).partition(_PROMPT)[0]).input_ids)


def _filled(tokenizer: Any) -> str:
    return tokenizer.apply_chat_template([{"role": "user", "content": _PROMPT}], tokenize=False)
