"""Files are written whole or not at all, and what cannot be read is one message."""

from contextlib import suppress

import pytest
import torch
from PIL import Image

from dgpo.errors import UserError
from dgpo.files import image_size, json_object, read_image, whole


def test_a_file_takes_its_name_only_when_it_is_whole(tmp_path) -> None:
    path = tmp_path / "page.html"
    with whole(path) as unfinished:
        unfinished.write_text("first")
        assert not path.exists()
    with suppress(KeyboardInterrupt), whole(path) as unfinished:
        unfinished.write_text("sec")
        raise KeyboardInterrupt
    assert path.read_text() == "first"


@pytest.mark.parametrize(("text", "message"), [("{", "line 3 is not JSON"), ("[1]", r"line 3 is '\[1\]'; it must be")])
def test_what_is_no_object_is_refused(text, message) -> None:
    with pytest.raises(UserError, match=message):
        json_object(text, "line 3")
    assert json_object('{"a": 1}', "line 3") == {"a": 1}


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
