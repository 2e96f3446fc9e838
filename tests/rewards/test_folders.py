"""`dgpo reward check` and `dgpo score` on folders of pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from dgpo.commands.main import main
from dgpo.data.image_folder import load_images, read_folder

GREYS = (0, 51, 102, 153, 204, 255)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs a command in a folder of its own and returns what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")

    def call(words: str, code: int = 0) -> str:
        capsys.readouterr()
        assert main(words.split()) == code
        out, err = capsys.readouterr()
        return err if code == 2 else out

    return call


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six grey pictures; every second one is larger. Captions lie beside them."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, grey in enumerate(GREYS):
        size = (8, 8) if i % 2 == 0 else (16, 8)
        Image.new("RGB", size, (grey, grey, grey)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"grey {i % 3}\n")
    return folder


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_folder_is_scored_size_by_size_and_never_twice(folder: Path, command: Callable[..., str]) -> None:
    out = command("score pictures --rewards brightness redness=2 --batch-size 2")
    assert out.split()[-1] == "pictures/scores.jsonl"
    found = rows(folder / "scores.jsonl")
    assert [row["file_name"] for row in found] == [f"{i}.png" for i in range(6)]
    assert found[4]["prompt"] == "grey 1"
    assert [row["brightness"] for row in found] == pytest.approx([grey / 255 for grey in GREYS], abs=1e-6)
    assert [row["reward"] for row in found] == [row["brightness"] + 2 * row["redness"] for row in found]
    cells = [line.replace("│", " ").split() for line in out.splitlines()]
    assert ["brightness", "0.5000", "0.1155"] in cells, "two pictures of each prompt, so 0.2 / sqrt 3"
    before = (folder / "scores.jsonl").read_bytes()
    assert "pictures/scores.jsonl exists and is not replaced" in command("score pictures --rewards brightness", 2)
    assert (folder / "scores.jsonl").read_bytes() == before
    command("score pictures --rewards brightness --out again.jsonl")
    assert len(rows(Path("again.jsonl"))) == 6


@pytest.mark.parametrize(("name", "key"), [("metadata.jsonl", "text"), ("captions.jsonl", "prompt")])
def test_captions_and_metadata_from_a_list(folder: Path, name: str, key: str) -> None:
    """A `text` beside a prompt is metadata."""
    lines = [{"file_name": "3.png", key: "a", "n": 1}, {"file_name": "0.png", "prompt": "b", "text": "c"}]
    (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    pictures = read_folder(folder)
    assert [(p.name, p.prompt, p.metadata) for p in pictures] == [
        ("3.png", "a", {"n": 1}),
        ("0.png", "b", {"text": "c"}),
    ]
    assert pictures[0].size == (16, 8)
    assert torch.equal(load_images([pictures[0].path]), torch.full((1, 3, 8, 16), 153 / 255))


def test_pictures_of_a_prompt_are_scored_together_where_they_are_compared(
    folder: Path, command: Callable[..., str]
) -> None:
    """Two of each prompt and size, in batches of one: 0 and 2, 1 and 3."""
    lines = [{"file_name": f"{i}.png", "prompt": f"{i % 2}"} for i in (0, 1, 2, 3)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command("score pictures --rewards pixel_diversity --batch-size 1")
    found = [row["pixel_diversity"] for row in rows(folder / "scores.jsonl")]
    assert found == pytest.approx([0.4] * 4)


def test_what_cannot_be_scored_is_told_and_leaves_nothing(folder: Path, command: Callable[..., str]) -> None:
    files = sorted(folder.iterdir())
    assert "name a folder of pictures first" in command("score --rewards brightness", 2)
    assert "there is nothing to score" in command("score pictures", 2)
    assert "'much' is no weight" in command("score pictures --rewards brightness=much", 2)
    assert "there is no picture in 'nowhere'" in command("score nowhere --rewards brightness", 2)
    assert "reads include" in command("score pictures --rewards shapes", 2)
    assert "has only one; draw at least 2" in command("score pictures --rewards pixel_diversity", 2)
    assert sorted(folder.iterdir()) == files
    (folder / "0.txt").unlink()
    assert "0.png' has no caption: put it into 0.txt" in command("score pictures --rewards brightness", 2)
    (folder / "metadata.jsonl").write_text('{"file_name": "0.png", "prompt": "a"}\n{"prompt": "b"}\n')
    assert "line 2 of 'pictures/metadata.jsonl'" in command("score pictures --rewards brightness", 2)
    (folder / "metadata.jsonl").write_text('{"file_name": "0.png", "prompt": "a"}\n')
    (folder / "0.png").write_bytes((folder / "0.png").read_bytes()[:45])
    assert "cannot read the picture 'pictures/0.png'" in command("score pictures --rewards brightness", 2)


def test_rewards_are_checked_on_the_embedded_world(command: Callable[..., str]) -> None:
    out = command("reward check shapes --batch 4")
    assert "shapes: 4 images of 64x64" in out
    assert "range of shapes" in out
    assert "all passed" in out
    assert "tells none" not in out
    assert "groups alone" in command("reward check pixel_diversity --batch 4")
    Path("mine.py").write_text(
        "def centred(images, prompts, metadata):\n    return images.mean((1, 2, 3)) - images.mean()\n"
    )
    told = json.loads(command("reward check mine:centred --batch 4 --json", 1))
    assert [found["check"] for found in told["findings"] if found["passed"] is False] == ["images alone"]
    assert (told["reward"], told["passed"]) == ("mine:centred", False)


def test_rewards_are_checked_on_ones_own_pictures_and_prompts(folder: Path, command: Callable[..., str]) -> None:
    assert "brightness: 3 images of 8x8" in command("reward check brightness --images pictures --batch 3")
    message = command("reward check shapes --images pictures --batch 3", 2)
    assert "reads include" in message
    assert "pictures's captions; --prompts gives others" in message
    out = command("reward check shapes --images pictures --prompts shapes:train --batch 3", 2)
    assert "the shapes world reads images" in out
    assert "3 pictures of the first one's size, and the check takes 8" in command(
        "reward check brightness --images pictures", 2
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("reward chek shapes", "there is no command 'reward chek'"),
        ("reward check --batch 4", "name a reward first"),
        ("reward check shapes --batch 1", "--batch 1 leaves nothing to compare; give at least 2"),
        ("reward check pixel_diversity --batch 3", "give at least 4"),
        ("reward check shapes --tolerance -1", "--tolerance -1.0 must be in [0, 1)"),
        ("reward check brigthness", "Did you mean 'brightness'"),
    ],
)
def test_mistakes_of_the_check(words: str, message: str, command: Callable[..., str]) -> None:
    assert message in command(words, 2)
