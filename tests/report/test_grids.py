import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dgpo.errors import UserError
from dgpo.report.grids import read_samples, sample_grid, write_samples


def test_grid_places_images_by_rows_and_enlarges_by_whole_pixels():
    images = torch.zeros(3, 3, 2, 2)
    images[0, 0] = 1.0
    images[1, 1, 0, 0] = 0.5
    grid = np.asarray(sample_grid(images, columns=2, scale=3, gap=1))
    assert grid.shape == (15, 15, 3)
    assert (grid[0] == 255).all()
    assert (grid[1:7, 1:7] == [255, 0, 0]).all()
    assert (grid[1:4, 8:11] == [0, 128, 0]).all()
    assert (grid[4:7, 8:14] == 0).all()
    assert (grid[8:14, 1:7] == 0).all()
    assert (grid[8:14, 8:14] == 255).all()


def test_scale_is_chosen_for_tiny_images_only():
    assert sample_grid(torch.zeros(1, 3, 64, 64), columns=4, gap=0).size == (128, 128)
    assert sample_grid(torch.zeros(2, 3, 200, 300), columns=4, gap=0).size == (600, 200)


def test_rows_may_have_labels_to_their_left():
    images = torch.zeros(4, 3, 64, 64)
    plain, labelled = sample_grid(images, 2, gap=4), sample_grid(images, 2, gap=4, labels=["before", "after"])
    left = labelled.width - plain.width
    assert left > 0
    assert labelled.height == plain.height
    assert labelled.crop((left, 0, *labelled.size)).tobytes() == plain.tobytes()
    for row in range(2):
        margin = labelled.crop((0, row * 132, left, (row + 1) * 132)).convert("L")
        assert margin.getextrema()[0] < 128, "something is written there"


def test_samples_come_back_as_written(tmp_path: Path):
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    grid = write_samples(tmp_path, 20, images, ["a", "b"])
    write_samples(tmp_path, 0, images.flip(0), ["a", "b"])
    assert grid == tmp_path / "samples" / "iteration-000020.png"
    assert json.loads((tmp_path / "samples" / "iteration-000020.json").read_text())["images_per_prompt"] == 2
    samples = read_samples(tmp_path)
    assert samples is not None
    assert samples.prompts == ["a", "a", "b", "b"]
    assert samples.images_per_prompt == 2
    assert list(samples.iterations) == [0, 20]
    pixels = np.asarray(Image.open(samples.iterations[20][3]))
    torch.testing.assert_close(torch.from_numpy(pixels.copy()).permute(2, 0, 1), (images[3] * 255).round().byte())


def test_an_iteration_cut_short_is_not_shown(tmp_path: Path):
    assert read_samples(tmp_path) is None
    grid = write_samples(tmp_path, 0, torch.zeros(2, 3, 8, 8), ["a", "b"])
    write_samples(tmp_path, 10, torch.zeros(2, 3, 8, 8), ["a", "b"]).unlink()
    samples = read_samples(tmp_path)
    assert samples is not None
    assert list(samples.iterations) == [0]
    grid.unlink()
    assert read_samples(tmp_path) is None


def test_what_cannot_be_shared_or_read_is_an_error(tmp_path: Path):
    with pytest.raises(ValueError, match="3 images cannot be shared evenly by 2 prompts"):
        write_samples(tmp_path, 0, torch.zeros(3, 3, 8, 8), ["a", "b"])
    grid = write_samples(tmp_path, 0, torch.zeros(1, 3, 8, 8), ["a"])
    grid.with_suffix(".json").write_text("[1]")
    with pytest.raises(UserError, match=r"iteration-000000\.json"):
        read_samples(tmp_path)


def test_scores_lie_beside_the_pictures(tmp_path: Path):
    images, scores = torch.zeros(4, 3, 8, 8), {"reward": torch.tensor([0.5, 1.0, torch.nan, 0.0])}
    grid = write_samples(tmp_path, 3, images, ["a", "b"], scores)
    assert json.loads(grid.with_suffix(".json").read_text())["scores"] == {"reward": [0.5, 1.0, None, 0.0]}
    samples = read_samples(tmp_path)
    assert samples is not None
    np.testing.assert_equal(samples.scores, {3: {"reward": [0.5, 1.0, np.nan, 0.0]}})


def test_a_run_of_an_earlier_version_goes_on_with_several_pictures_of_a_prompt(tmp_path: Path):
    """Its four pictures belonged to four prompts; the same number of new ones belongs to two."""
    old, new = torch.rand(4, 3, 8, 8), torch.rand(4, 3, 8, 8)
    write_samples(tmp_path, 0, old, ["a", "b", "c", "d"]).with_suffix(".json").unlink()
    index = {"prompts": ["a", "b", "c", "d"], "images_per_prompt": 1, "columns": 2}
    (tmp_path / "samples" / "prompts.json").write_text(json.dumps(index))
    samples = read_samples(tmp_path)
    assert samples is not None
    assert (samples.prompts, samples.scores) == (["a", "b", "c", "d"], {0: {}})
    write_samples(tmp_path, 10, new, ["a", "b"], {"reward": torch.tensor([0.0, 1.0, 2.0, 3.0])})
    samples = read_samples(tmp_path)
    assert samples is not None
    assert (samples.prompts, samples.images_per_prompt) == (["a", "b"], 1)
    assert [path.name for path in samples.iterations[0]] == ["000.png", "001.png"]
    assert [path.name for path in samples.iterations[10]] == ["000.png", "002.png"]
    assert samples.scores == {0: {}, 10: {"reward": [0.0, 2.0]}}


def test_a_text_stands_above_the_rows_it_heads():
    images = torch.zeros(4, 3, 32, 32)
    plain = sample_grid(images, 1, scale=2)
    headed = sample_grid(images, 1, scale=2, headings=["one", "two"])
    long = sample_grid(images, 1, scale=2, headings=["one", "two words and more"])
    assert headed.size[1] > plain.size[1]
    assert long.size[1] > headed.size[1], "as many lines as it takes"
    line = (headed.size[1] - plain.size[1]) // 2
    pixels = np.asarray(headed)
    rows = [(pixels[y] == 0).all(1).sum() >= 64 for y in range(headed.size[1])]
    begins = [y for y in range(1, len(rows)) if rows[y] and not rows[y - 1]]
    assert begins == [4 + line, 4 + line + 68, 4 + 2 * line + 2 * 68, 4 + 2 * line + 3 * 68]
    assert (pixels[4 : 4 + line] < 200).any(), "with a text"
    assert not (pixels[line + 68 : line + 72] < 200).any(), "and none between rows of one text"
