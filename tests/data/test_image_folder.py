"""A folder of pictures with captions is read as it was written."""

from pathlib import Path

import torch

from dgpo.data.image_folder import load_images, read_folder, write_folder
from dgpo.data.prompts import PromptSet

IMAGES = torch.arange(2 * 11).div(255).view(2, 11, 1, 1, 1).expand(2, 11, 3, 4, 6)


def test_captions_lie_beside_the_pictures_in_the_order_of_their_names(tmp_path: Path):
    write_folder(tmp_path / "new", IMAGES, PromptSet(["a cat", "a\ndog"], [{}, {}]))
    assert not (tmp_path / "new" / "metadata.jsonl").exists()
    pictures = read_folder(tmp_path / "new")
    assert [picture.name for picture in pictures][9:12] == ["0-09.png", "0-10.png", "1-00.png"]
    assert [picture.prompt for picture in pictures] == ["a cat"] * 11 + ["a\ndog"] * 11
    assert torch.equal(load_images([picture.path for picture in pictures]), IMAGES.flatten(0, 1))


def test_metadata_of_prompts_comes_back(tmp_path: Path):
    metadata = [{"tag": "colors", "include": [{"class": "cat"}]}, {"file_name": "theirs"}]
    write_folder(tmp_path / "new", IMAGES[:, :1], PromptSet(["a cat", "a dog"], metadata))
    pictures = read_folder(tmp_path / "new")
    assert [(p.name, p.prompt) for p in pictures] == [("0-0.png", "a cat"), ("1-0.png", "a dog")]
    assert [p.metadata for p in pictures] == [metadata[0], {}]
    assert (tmp_path / "new" / "1-0.txt").read_text() == "a dog\n"
