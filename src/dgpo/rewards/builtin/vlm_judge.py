"""A vision-language model as judge: each picture is shown to a chat endpoint with a question, its answer is the score.

Any endpoint that speaks OpenAI's chat completions will do: vLLM, SGLang, a hosted one. The question is a template over
the prompt and its metadata; a pattern reads a number out of the answer, which must lie in `score_range` and is
normalised to [0, 1]. An answer without such a number, or with several different ones, is an error; with `unparsable`
it is given that score instead, is counted in `vlm_judge/unparsable` and is warned about.

Calls are one POST each, sent with httpx2 as those of the other rewards over HTTP; the openai package would add a second
HTTP client with retries of its own. The key is sent in a header and appears in no message.
"""

from __future__ import annotations

import asyncio
import base64
import os
import re
import string
import warnings
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor

from dgpo.errors import Extra, UserError
from dgpo.rewards.base import RewardAway, RewardError
from dgpo.rewards.http import calls
from dgpo.rewards.http.auth import bearer, secret
from dgpo.utils.pictures import to_png

with Extra("remote", "the reward vlm_judge"):
    import httpx2

URL, MODEL, KEY = "OPENAI_BASE_URL", "DGPO_JUDGE_MODEL", "OPENAI_API_KEY"
TEMPLATE = (
    "This picture was made for the request below. How well does it show what was asked for, and how well is it made? "
    'Answer with one line, "Score: N", where N is a number from 0 (not at all) to 10 (perfectly).\n\nRequest: {prompt}'
)
PATTERN = r"(?i)\bscore\b[\s:=*\"]*(?P<score>-?\d+(?:\.\d+)?)(?![.,]?\d)"
REQUEST = MappingProxyType({"temperature": 0, "max_tokens": 256})
NOT_HERE = (404, 405)  # no such model, no such path
BUSY = calls.BUSY | {500, 529}  # of a model server, a 500 is as often a passing one


class VLMJudge:
    """images (B, 3, H, W) in [0, 1] -> B scores in [0, 1]; with `unparsable`, also which answers could not be read.

    base_url: up to /v1; None: OPENAI_BASE_URL. model: None: DGPO_JUDGE_MODEL. key_env: the environment variable with
    the key; None: OPENAI_API_KEY, if it is set. template: {prompt} and {KEY} of the metadata are filled in. pattern: a
    regular expression with a group called score. score_range: the numbers that stand for 0 and 1. unparsable: the
    score of an answer that cannot be read; None: it is an error. request: more fields of the request's body.
    concurrency: calls at the same time; timeout: seconds for each; retries: of each, while the endpoint is away or
    overloaded; 6 take about 20 seconds, or as long as the endpoint asks for, once in an outage: until it answers
    again, each later call tries once.
    """

    def __init__(
        self,
        base_url: str | None = None,
        model: str | None = None,
        *,
        key_env: str | None = None,
        template: str = TEMPLATE,
        pattern: str = PATTERN,
        score_range: tuple[float, float] = (0, 10),
        unparsable: float | None = None,
        request: Mapping[str, Any] = REQUEST,
        concurrency: int = 16,
        timeout: float = 120.0,
        retries: int = 6,
    ) -> None:
        self._url = f"{calls.checked_url(_setting(base_url, 'base_url', URL))}/chat/completions"
        self._model = _setting(model, "model", MODEL)
        self._key_name, self._headers = key_env or KEY, bearer(secret(key_env, KEY))
        self._template, self.required_metadata = template, _keys(template)
        self._pattern, (self._low, self._high) = _compiled(pattern), score_range
        if not self._low < self._high or concurrency < 1 or timeout <= 0 or retries < 0:
            raise UserError(
                f"vlm_judge cannot work with score_range={score_range}, concurrency={concurrency}, timeout={timeout}, "
                f"retries={retries}: the range must rise, the others be at least 1, above 0, and at least 0"
            )
        self._unparsable, self._request, self._concurrency = unparsable, dict(request), concurrency
        self._timeout, self._patience = timeout, calls.Patience("vlm_judge", retries)

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Any:
        questions = [self._question(i, text, row) for i, (text, row) in enumerate(zip(prompts, metadata))]
        answers = calls.run(self._ask_all, images, questions)
        scores = [self._read(answer, i) for i, answer in enumerate(answers)]
        if self._unparsable is None:
            return scores
        missing = [i for i, score in enumerate(scores) if score is None]
        if missing:
            warnings.warn(
                f"{len(missing)} of {len(answers)} answers of the judge could not be read and count as "
                f"{self._unparsable}; the first is {_short(answers[missing[0]])}",
                stacklevel=2,
            )
        return {
            "score": [self._unparsable if score is None else score for score in scores],
            "unparsable": [float(score is None) for score in scores],
        }

    def check_row(self, prompt: str, metadata: Mapping[str, Any]) -> None:
        """Refuse metadata that cannot be filled into the template."""
        try:
            self._question(0, prompt, metadata)
        except RewardError as error:
            raise UserError(f"the reward vlm_judge {error}, for the prompt {prompt!r}") from error

    def _question(self, index: int, prompt: str, row: Mapping[str, Any]) -> str:
        try:
            return self._template.format(**{**row, "prompt": prompt})
        except (LookupError, ValueError, TypeError, AttributeError) as error:
            raise RewardError(f"cannot fill in its template: {type(error).__name__}: {error}", index) from error

    async def _ask_all(self, images: Tensor, questions: list[str]) -> list[str]:
        slots = asyncio.Semaphore(self._concurrency)
        async with calls.client(self._headers) as client:

            async def ask(index: int) -> str:
                async with slots:
                    return await self._ask(client, images[index], questions[index], index)

            return await calls.together(ask(i) for i in range(len(questions)))

    async def _ask(self, client: httpx2.AsyncClient, image: Tensor, question: str, index: int) -> str:
        picture = f"data:image/png;base64,{base64.b64encode(to_png(image)).decode()}"
        content = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": question}]
        body = {"model": self._model, "messages": [{"role": "user", "content": content}], **self._request}
        try:
            response = await self._patience.answer(
                lambda: calls.send(client, "POST", self._url, self._timeout, BUSY, json=body)
            )
        except calls.Unavailable as error:
            kind = RewardAway if error.nobody else RewardError
            raise kind(f"got no answer of the judge: {error}", index) from error
        return self._text(response, index)

    def _text(self, response: httpx2.Response, index: int) -> str:
        if response.status_code in (401, 403):
            raise RewardAway(f"is refused by {self._url}: the key in {self._key_name} is missing or wrong")
        try:
            (choice,) = response.raise_for_status().json()["choices"]
            return str(choice["message"]["content"] or "")
        except (httpx2.HTTPStatusError, ValueError, KeyError, TypeError) as error:
            said = f"{self._url} answered {response.status_code}: {calls.excerpt(response)}"
            kind = RewardAway if response.status_code in NOT_HERE else RewardError
            raise kind(f"got no chat completion: {said}", index) from error

    def _read(self, answer: str, index: int) -> float | None:
        """The score in an answer. Where there is none: an error, or None if `unparsable` stands in for it."""
        numbers = {match["score"] for match in self._pattern.finditer(answer)}
        try:
            (value,) = {float(text) for text in numbers}
            if self._low <= value <= self._high:
                return (value - self._low) / (self._high - self._low)
        except (ValueError, TypeError):  # none, several, or no number
            pass
        if self._unparsable is not None:
            return None
        raise RewardError(
            f"could not read one score from {self._low:g} to {self._high:g} in the judge's answer {_short(answer)} "
            f"with the pattern {self._pattern.pattern!r}; mend one of template and pattern, or give a score as "
            "`unparsable`",
            index,
        )


def _setting(value: str | None, name: str, variable: str) -> str:
    value = value or os.environ.get(variable)
    if not value:
        raise UserError(f"vlm_judge needs a {name}: VLMJudge({name}=...), or the environment variable {variable}")
    return value


def _keys(template: str) -> tuple[str, ...]:
    """The metadata that a template reads."""
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise UserError(f"the template of vlm_judge cannot be filled in: {error}. A brace is written twice") from None
    keys = [re.split(r"[.\[]", name)[0] for name in names]
    if not all(key.isidentifier() for key in keys):
        raise UserError(f"the template of vlm_judge has fields {keys}; they must be prompt or keys of the metadata")
    return tuple(dict.fromkeys(key for key in keys if key != "prompt"))


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"the pattern {pattern!r} of vlm_judge is no regular expression: {error}") from None
    if "score" not in compiled.groupindex:
        raise UserError(f"the pattern {pattern!r} of vlm_judge needs a group called score, such as (?P<score>\\d+)")
    return compiled


def _short(text: str) -> str:
    return repr(text if len(text) <= 200 else f"{text[:100]}...{text[-100:]}")
