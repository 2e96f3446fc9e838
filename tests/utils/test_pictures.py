"""Pictures of files: how tensors are rounded, and which files are read."""

import io

import pytest
import torch
from PIL import Image

from dgpo.errors import UserError
from dgpo.utils.pictures import from_pil, image_size, levels, read_image, to_bytes, to_pil, to_png, to_rows


def test_the_nearest_level_is_taken_and_what_lies_outside_takes_the_end() -> None:
    values = torch.tensor([-1.0, 0.0, 0.4 / 255, 0.6 / 255, 127.4 / 255, 1.0, 7.0])
    assert levels(values).tolist() == [0, 0, 0, 1, 127, 255, 255]
    assert to_bytes(values).tolist() == [0, 0, 0, 1, 127, 255, 255]
    assert to_bytes(values).dtype == torch.uint8
    assert levels(torch.tensor(torch.nan)).isnan()


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_what_is_no_number_becomes_no_colour(wrong) -> None:
    with pytest.raises(ValueError, match="not finite"):
        to_bytes(torch.tensor([0.5, wrong]))


def test_every_form_holds_the_same_pixels() -> None:
    images = torch.rand(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    expected = levels(images) / 255
    assert torch.equal(to_rows(images).permute(0, 3, 1, 2) / 255, expected)
    assert to_rows(images).is_contiguous()
    for image, same in zip(images, expected):
        assert torch.equal(from_pil(to_pil(image)), same)
        assert torch.equal(from_pil(Image.open(io.BytesIO(to_png(image)))), same)


def test_pictures_are_read_in_the_formats_that_are_allowed(tmp_path) -> None:
    path = tmp_path / "red.png"
    Image.new("RGBA", (3, 2), (255, 0, 51, 255)).save(path)
    assert image_size(path, ("PNG",), "cannot read") == (3, 2)
    expected = torch.tensor([1, 0, 0.2]).view(3, 1, 1).expand(3, 2, 3)
    torch.testing.assert_close(read_image(path, ("PNG",), "cannot read"), expected)
    for formats, content in ((("JPEG",), path.read_bytes()), (("PNG",), path.read_bytes()[:40])):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"cannot read '.*red\.png'"):
            read_image(path, formats, "cannot read")
