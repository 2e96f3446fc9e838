"""Files are written whole or not at all, and what cannot be read is one message."""

import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from dgpo.errors import UserError
from dgpo.utils.files import is_unfinished, json_object, read_text, save_tensors, share, whole


def test_a_file_takes_its_name_only_when_it_is_whole(tmp_path) -> None:
    path = tmp_path / "page.html"
    with whole(path) as unfinished:
        unfinished.write_text("first")
        assert not path.exists()
    with suppress(KeyboardInterrupt), whole(path) as unfinished:
        unfinished.write_text("sec")
        raise KeyboardInterrupt
    assert path.read_text() == "first"
    assert [*tmp_path.iterdir()] == [path]


def test_two_processes_that_write_one_file_do_not_meet(tmp_path, monkeypatch) -> None:
    path = tmp_path / "config.yaml"
    with whole(path) as one:
        monkeypatch.setattr("os.getpid", lambda: -1)
        with whole(path) as other:
            assert one != other
            other.write_text("other")
        one.write_text("one")
        assert path.read_text() == "other"
    assert path.read_text() == "one"


def test_what_a_killed_process_left_is_known_by_its_name(tmp_path) -> None:
    with whole(tmp_path / "config.yaml") as unfinished:
        assert is_unfinished(unfinished.name, "config.yaml")
        unfinished.touch()
    assert not is_unfinished("config.yaml", "config.yaml")
    assert not is_unfinished("other.yaml.1.part", "config.yaml")


def test_a_text_that_cannot_be_read_is_one_message(tmp_path) -> None:
    path = tmp_path / "latin.txt"
    path.write_text("\ufeffcat", encoding="utf-8")
    assert read_text(path) == "cat"
    path.write_bytes("Käse".encode("latin-1"))
    with pytest.raises(UserError, match=r"^no prompts in '.*latin\.txt': .*codec.*; convert it$"):
        read_text(path, "no prompts in", "; convert it")


def test_a_relative_path_is_told_with_the_folder_it_is_looked_up_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"'my.txt'; it is looked up from the current folder, {tmp_path}; give one"):
        read_text(Path("my.txt"), advice="; give one")
    with pytest.raises(UserError, match=r"my\.txt'$"):
        read_text(tmp_path / "my.txt")


@pytest.mark.parametrize(("text", "message"), [("{", "line 3 is not JSON"), ("[1]", r"line 3 is '\[1\]'; it must be")])
def test_what_is_no_object_is_refused(text, message) -> None:
    with pytest.raises(UserError, match=message):
        json_object(text, "line 3")
    assert json_object('{"a": 1}', "line 3") == {"a": 1}


METADATA = {"z": "1", "format": "pt", "a": 'é\u2028\x01"', "m": "{}", "": "no name"}
SAVE = """
import sys, torch
from pathlib import Path
from dgpo.utils.files import save_tensors
save_tensors({"b": torch.arange(3.0), "a": torch.ones(2, 2).half()}, Path(sys.argv[1]), eval(sys.argv[2]))
"""


@pytest.mark.slow
def test_tensors_are_written_with_the_same_bytes_by_every_process(tmp_path) -> None:
    files = [tmp_path / f"{number}.safetensors" for number in range(3)]
    for file in files:
        subprocess.run([sys.executable, "-c", SAVE, file, repr(METADATA)], check=True, umask=0o027)
        assert file.stat().st_mode & 0o777 == 0o640
    assert len({file.read_bytes() for file in files}) == 1
    with safe_open(files[0], "pt") as opened:
        assert opened.metadata() == METADATA
        assert torch.equal(opened.get_tensor("b"), torch.arange(3.0))
        assert torch.equal(opened.get_tensor("a"), torch.ones(2, 2).half())


def test_a_folder_is_shared_with_all_below_and_nothing_is_left_in_it(tmp_path) -> None:
    (tmp_path / "deep").mkdir()
    closed = [tmp_path / "one", tmp_path / "deep" / "two"]
    for path in closed:
        path.touch(0o600)
    (tmp_path / "deep" / "any").touch()
    share(tmp_path)
    assert {path.stat().st_mode for path in closed} == {(tmp_path / "deep" / "any").stat().st_mode}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "one"]
    save_tensors({"a": torch.ones(1)}, tmp_path / "one")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "one"]


def test_tensors_are_written_by_the_one_helper() -> None:
    source = Path(__file__).parents[2] / "src"
    files = {path for path in source.rglob("*.py") if re.search(r"import .*\bsave_file\b", path.read_text())}
    assert files == {source / "dgpo/utils/files.py"}
