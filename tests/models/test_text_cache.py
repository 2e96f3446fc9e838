"""Prompts are encoded once, in memory or on disk, and a run can go on without its text encoders."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from runs import assert_same_run, rows, run, small, tensors
from tiny import save_tiny_sd3  # pyright: ignore[reportMissingImports] (tests/models)

from dgpo import UserError, load_model
from dgpo.models.text_cache import BATCH, CondCache

TEXTS = ["a red cat", "two dogs", "a cup", "two dogs", ""]


class Spy:
    """A model that notes what it is asked to encode."""

    def __init__(self, model: Any) -> None:
        self._model, self.asked = model, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def encode(self, prompts: list[str]) -> Any:
        self.asked.append(list(prompts))
        return self._model.encode(prompts)


@pytest.fixture
def spy(tiny_folder: Path) -> Spy:
    return Spy(load_model(tiny_folder, device="cpu", sets=()))


def close(one: Any, other: Any) -> None:
    for name, tensor in one.tensors.items():
        torch.testing.assert_close(tensor, other.tensors[name], rtol=1e-5, atol=1e-5)


def test_known_prompts_are_encoded_in_batches_and_never_again(spy: Spy) -> None:
    told: list[tuple[str, int, int]] = []
    cache = CondCache(spy, tell=lambda *progress: told.append(progress))
    many = [*TEXTS, *(f"prompt {i}" for i in range(2 * BATCH))]
    cache.know(many)
    distinct = list(dict.fromkeys(many))
    assert [len(batch) for batch in spy.asked] == [BATCH, BATCH, len(distinct) - 2 * BATCH]
    assert told == [("encoding", done, len(distinct)) for done in (0, BATCH, 2 * BATCH)]
    asked = len(spy.asked)
    found = cache(["two dogs", "a cup", "two dogs"])
    cache.know(many)
    assert len(spy.asked) == asked
    close(found, spy.encode(["two dogs", "a cup", "two dogs"]))
    assert torch.equal(found.tensors["pooled"][0], found.tensors["pooled"][2])


@pytest.mark.slow
def test_a_folder_serves_later_runs_of_the_same_encoders_only(spy: Spy, tiny_folder: Path, tmp_path: Path) -> None:
    first = CondCache(spy, tmp_path / "texts")
    first.know(TEXTS[:2])
    expected = first(["two dogs", "a cup"])
    assert spy.asked == [TEXTS[:2], ["a cup"]]
    later = Spy(load_model(tiny_folder, device="cpu", sets=(), finetune="full"))
    found = CondCache(later, tmp_path / "texts")(["two dogs", "a cup"])
    assert not later.asked
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in expected.tensors.items())
    for other in (
        load_model(tiny_folder, device="cpu", sets=(), max_sequence_length=5),
        load_model(save_tiny_sd3(tmp_path / "other", seed=1), device="cpu", sets=()),
    ):
        stranger = Spy(other)
        CondCache(stranger, tmp_path / "texts")(["two dogs"])
        assert stranger.asked == [["two dogs"]]
    assert not list((tmp_path / "texts").glob("*.part"))


def test_a_damaged_file_and_a_model_that_cannot_be_told_apart_are_refused(spy: Spy, tmp_path: Path) -> None:
    cache = CondCache(spy, tmp_path)
    cache.know(["two dogs"])
    (file,) = tmp_path.glob("*.safetensors")
    file.write_bytes(b"x" * 20)
    with pytest.raises(UserError, match=r"is damaged .* delete it"):
        cache(["two dogs"])
    nobody: Any = SimpleNamespace(encode=spy.encode)
    with pytest.raises(UserError, match=r"prompt_cache=.* needs a model that tells"):
        CondCache(nobody, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made"):
        CondCache(spy, tmp_path / "file" / "folder")


def test_without_encoders_guidance_goes_on_and_encoding_fails(tiny_folder: Path) -> None:
    model: Any = load_model(tiny_folder, device="cpu", sets=())
    cond, x, t = model.encode(["two dogs"]), torch.randn(1, 4, 8, 8), torch.tensor([0.5])
    before = model.velocity(x, t, cond, 3.0)
    model.free_encoders()
    assert model.pipeline.text_encoder is model.pipeline.text_encoder_2 is None
    assert torch.equal(model.velocity(x, t, cond, 3.0), before)
    with pytest.raises(Exception, match="NoneType"):
        model.encode(["two dogs"])


@pytest.mark.slow
@pytest.mark.parametrize("cached", [False, True])
def test_a_run_without_encoders_is_the_same_run(tiny_folder: Path, tmp_path: Path, cached: bool) -> None:
    """Up to the rounding of encoding in batches; and resumed it is the same bit for bit."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red cat\na green cat\n")
    changes: dict[str, Any] = {"eval_prompts": {"seen": str(prompts)}, "eval_every": 2, "text_dropout": 0.3}
    run(small(tiny_folder, tmp_path / "with", **changes))
    changes |= {"free_text_encoders": True, "prompt_cache": str(tmp_path / "texts") if cached else None}
    run(small(tiny_folder, tmp_path / "without", **changes))
    for one, other in zip(rows(tmp_path / "with"), rows(tmp_path / "without"), strict=True):
        assert other == pytest.approx(one, rel=1e-3, abs=1e-4)
    weights = tensors(tmp_path / "without", 3)
    for key, tensor in tensors(tmp_path / "with", 3).items():
        if key.startswith("policy"):
            torch.testing.assert_close(weights[key], tensor, rtol=1e-2, atol=1e-3)
    run(small(tiny_folder, tmp_path / "two", **changes, iterations=2))
    run(small(tiny_folder, tmp_path / "two", **changes), resume=True)
    assert_same_run(tmp_path / "without", tmp_path / "two", 3)
