"""What is taken for a repository of the Hugging Face hub."""

import pytest

from dgpo.utils.hub_id import is_hub_id


@pytest.mark.parametrize("text", ["stabilityai/stable-diffusion-3.5-medium", "a/b", "_a/1.0_b-c"])
def test_owner_and_name_make_an_id(text) -> None:
    assert is_hub_id(text)


@pytest.mark.parametrize("text", ["", "a", "a/", "/a", "a/b/c", "./a", "../a", "~/a", "-a/b", "a b/c", "a/b\n"])
def test_a_path_or_anything_else_is_none(text) -> None:
    assert not is_hub_id(text)
