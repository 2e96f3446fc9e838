"""Files of tensors: what is read, what is refused, and that nothing of a model stays random."""

import pytest
import torch
from safetensors.torch import save_file
from tiny_published import save_clip
from transformers import CLIPModel

from dgpo.errors import UserError
from dgpo.rewards.builtin.weights import fill, from_pretrained, is_file, read_tensors

TENSORS = {"a": torch.ones(2), "b": torch.zeros(1, 3)}


def test_both_formats_and_a_nested_state_dict(tmp_path):
    save_file(TENSORS, tmp_path / "a.safetensors")
    torch.save(TENSORS, tmp_path / "a.pt")
    torch.save({"state_dict": TENSORS}, tmp_path / "b.pth")
    for name in ("a.safetensors", "a.pt", "b.pth"):
        found = read_tensors(tmp_path / name)
        assert found.keys() == TENSORS.keys()
        assert all(torch.equal(found[key], TENSORS[key]) for key in TENSORS)


class Harm:
    def __reduce__(self):
        return (print, ("code of the file has run",))


def test_a_file_that_holds_code_is_refused_and_not_run(tmp_path, capsys):
    torch.save({"a": Harm()}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"a\.pt.*is refused.*weights_only=False"):
        read_tensors(tmp_path / "a.pt")
    assert "has run" not in capsys.readouterr().out


def test_what_is_no_dict_of_tensors_is_refused(tmp_path):
    torch.save({"a": 1}, tmp_path / "a.pt")
    torch.save([torch.ones(1)], tmp_path / "b.pt")
    (tmp_path / "c.pt").write_text("text")
    (tmp_path / "d.safetensors").write_text("text")
    for name, why in (("a.pt", "no dict"), ("b.pt", "a list"), ("c.pt", "cannot read"), ("d.safetensors", "cannot")):
        with pytest.raises(UserError, match=why):
            read_tensors(tmp_path / name)


def test_where_a_file_is_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_file("owner/repo/file.pt")
    assert not is_file("owner/repo")
    (tmp_path / "folder.pt").mkdir()
    assert not is_file("folder.pt")
    with pytest.raises(UserError, match=r"there is no file 'file\.pt'.*OWNER/REPO/FILE"):
        read_tensors("file.pt")


def test_a_file_on_the_hub_is_downloaded_by_its_client(tmp_path, monkeypatch):
    import huggingface_hub

    save_file(TENSORS, tmp_path / "file.safetensors")
    asked = []

    def download(repo, name):
        asked.append((repo, name))
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert read_tensors("owner/repo/file.safetensors").keys() == TENSORS.keys()
    assert asked == [("owner/repo", "file.safetensors")]

    def refuse(repo, name):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(UserError, match="gave none: no network"):
        read_tensors("owner/repo/file.safetensors")


def test_a_model_is_filled_wholly_or_not_at_all():
    linear = torch.nn.Linear(2, 1)
    fill(linear, {"weight": torch.ones(1, 2), "bias": torch.zeros(1)}, "w")
    assert linear.weight.tolist() == [[1, 1]]
    for tensors in ({"weight": torch.ones(1, 2)}, {**linear.state_dict(), "more": torch.ones(1)}):
        with pytest.raises(UserError, match="'w' are not those of Linear"):
            fill(linear, tensors, "w")


def test_a_folder_with_missing_tensors_is_refused(tmp_path):
    from safetensors.torch import load_file

    folder = save_clip(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 tensors are missing there \(visual_projection"):
        from_pretrained(CLIPModel, str(folder), "clip")
