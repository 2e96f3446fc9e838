"""Every prompt source with its mistakes, and the sampler's order, distinctness and saved position."""

import json
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgpo.data.prompts import PromptSet, load_prompts, sources_of
from dgpo.data.sampler import PromptSampler
from dgpo.errors import UserError
from dgpo.worlds.shapes import prompts


def test_list_of_strings_pairs_and_dicts():
    loaded = load_prompts(["a cat", ("a dog", {"tag": "x"}), {"prompt": "a cow", "include": [1]}])
    assert loaded == PromptSet(["a cat", "a dog", "a cow"], [{}, {"tag": "x"}, {"include": [1]}])
    assert load_prompts(loaded) == loaded


def test_subset_keeps_rows_together_and_order():
    loaded = load_prompts([("a", {"n": 0}), ("b", {"n": 1}), ("c", {"n": 2})])
    assert len(loaded) == 3
    assert loaded.subset([2, 0]) == PromptSet(["c", "a"], [{"n": 2}, {"n": 0}])


def test_text_file_ignores_blanks_and_surrounding_space(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeff  a cat \r\n\r\n\t\r\na \u2028 dog".encode())
    assert load_prompts(file).prompts == ["a cat", "a \u2028 dog"]


def test_jsonl_keeps_everything_but_the_prompt_as_metadata(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a cat", "tag": "single"}\n\n{"tag": "colors", "prompt": "a red dog"}\n')
    assert load_prompts(str(file)) == PromptSet(["a cat", "a red dog"], [{"tag": "single"}, {"tag": "colors"}])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("empty.txt", " \n\n", "no prompt in .*empty.txt"),
        ("empty.jsonl", "", "no prompt in .*empty.jsonl"),
        ("bad.jsonl", '{"prompt": "a"}\n\n{"prompt": \n', "line 3 of .*bad.jsonl' is not JSON"),
        ("array.jsonl", '["a cat"]\n', "line 1 .*must be an object"),
        ("without.jsonl", '{"prompt": "a"}\n{"text": "b"}\n', "line 2 .*has no prompt"),
        (
            "text.jsonl",
            '{"text": "a cat", "tag": "x"}\n',
            "line 1 .*has no prompt: its keys are 'text', 'tag', .* under 'prompt'; rename 'text'",
        ),
        (
            "caption.jsonl",
            '{"caption": "a cat"}\n',
            "its keys are 'caption', .*; rename 'caption' if it holds the text",
        ),
        ("no_keys.jsonl", "{}\n", "line 1 .*has no prompt: its keys are none"),
        ("twice.jsonl", '{"prompt": "a", "prompt": "b"}\n', "line 1 .*is not JSON: it has the key 'prompt' twice"),
        ("deep.jsonl", "[" * 100_000 + "\n", "line 1 .*is not JSON"),
        ("blank.jsonl", '{"prompt": " "}\n', "line 1 .*has no prompt"),
        ("half.jsonl", '{"prompt": "a \\ud800 cat"}\n', "line 1 .*half of a surrogate pair"),
        ("number.jsonl", '{"prompt": 3}\n', "line 1 .*got 3"),
        ("prompts.csv", "a\n", "cannot read prompts from .*prompts.csv.*FILE.jsonl"),
    ],
)
def test_bad_files_say_which_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        load_prompts(tmp_path / name)


def test_unreadable_files(tmp_path):
    with pytest.raises(UserError, match=r"cannot read the prompt file .*missing\.txt"):
        load_prompts(tmp_path / "missing.txt")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(UserError, match=r"cannot read the prompt file .*latin\.txt"):
        load_prompts(tmp_path / "latin.txt")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "no prompt in the given list"),
        (["a", ""], "prompt number 2 has no prompt"),
        ([("a", "b")], "prompt number 1 is"),
        ("a cat", "cannot read prompts from 'a cat'"),
        ("shapes:train:counting:extra", "shapes:SPLIT"),
        ("hf:", "hf:NAME"),
        (["a cat", "more.txt"], "'more.txt', which names a list of prompts, beside 'a cat', which does not"),
        (["geneval:train", ("a dog", {})], "'geneval:train', which .* beside .'a dog', {}., which does not"),
        (["shapes:seen:colors", "missing.jsonl"], "cannot read the prompt file .*missing.jsonl"),
    ],
)
def test_bad_sources(source, message):
    with pytest.raises(UserError, match=message):
        load_prompts(source)


def test_several_sources_are_one_list(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my cats.txt").write_text("a cat\ntwo cats\n")
    Path("dogs.jsonl").write_text('{"prompt": "a dog", "tag": "x"}\n')
    shapes = load_prompts("shapes:seen:colors")
    several = ("my cats.txt", "dogs.jsonl", "shapes:seen:colors")
    loaded = load_prompts(several)
    assert loaded == load_prompts([Path(one) if one.endswith(".txt") else one for one in several])
    assert loaded.prompts == ["a cat", "two cats", "a dog", *shapes.prompts]
    assert loaded.metadata == [{}, {}, {"tag": "x"}, *shapes.metadata]
    assert [loaded.place(i) for i in (1, 2)] == ["line 2 of 'my cats.txt'", "line 1 of 'dogs.jsonl'"]
    assert sources_of(several) == several
    assert sources_of(several[0]) == several[:1]
    Path("dogs.jsonl").write_text("")
    with pytest.raises(UserError, match=r"no prompt in 'dogs.jsonl'"):
        load_prompts(several)


@pytest.mark.parametrize("text", ["shapes: a red circle", "a page called notes.txt", f"{'x ' * 99}y.txt", "a cat"])
def test_a_text_that_looks_like_a_source_is_a_text(text):
    assert sources_of((text,)) == ()
    assert load_prompts([text]).prompts == [text]


def test_metadata_must_match_prompts():
    with pytest.raises(UserError, match="2 prompts came with 1 metadata"):
        PromptSet(["a", "b"], [{}])


def test_shapes_source_with_and_without_kinds():
    loaded = load_prompts("shapes:train:counting, colors")
    assert {metadata["tag"] for metadata in loaded.metadata} == {"counting", "colors"}
    rows = prompts.load("unseen")
    assert load_prompts("shapes:unseen").prompts == [row["prompt"] for row in rows]
    assert load_prompts("shapes:unseen").metadata[0]["include"] == rows[0]["include"]


def test_dataset_source_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'dgpo\[datasets\]'"):
        load_prompts("hf:some/name")


@pytest.fixture
def datasets(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    package = pytest.importorskip("datasets")
    monkeypatch.setattr(package.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return package


def test_dataset_from_local_file_split_and_column(datasets, tmp_path):
    rows = [{"caption": f"cat {i}", "tag": "t"} for i in range(3)]
    (tmp_path / "cats.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    loaded = load_prompts(f"hf:{tmp_path}/cats.jsonl:train[:2]:caption")
    assert loaded == PromptSet(["cat 0", "cat 1"], [{"tag": "t"}, {"tag": "t"}])
    with pytest.raises(UserError, match=r"no column 'captoin'\. Did you mean 'caption'"):
        load_prompts(f"hf:{tmp_path}/cats.jsonl:train:captoin")
    with pytest.raises(UserError, match="split 'nope'"):
        load_prompts(f"hf:{tmp_path}/cats.jsonl:nope")


def test_dataset_saved_to_disk(datasets, tmp_path):
    dataset = datasets.Dataset.from_dict({"prompt": ["a", "b"], "tag": ["x", "y"]})
    dataset.save_to_disk(tmp_path / "plain")
    datasets.DatasetDict(train=dataset, test=dataset.select([1])).save_to_disk(tmp_path / "splits")
    assert load_prompts(f"hf:{tmp_path}/plain").metadata == [{"tag": "x"}, {"tag": "y"}]
    assert load_prompts(f"hf:{tmp_path}/splits:test").prompts == ["b"]


def test_each_epoch_is_its_own_whole_permutation():
    sampler = PromptSampler(12, seed=0)
    epochs = [[i for _ in range(3) for i in sampler.next(4)] for _ in range(4)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert sampler.next(12) != PromptSampler(12, seed=1).next(12)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 9), st.lists(st.integers(1, 12), min_size=1, max_size=8))
def test_batches_are_distinct_wherever_they_can_be(size, requests):
    sampler = PromptSampler(size, seed=3)
    for num_groups in requests:
        batch = sampler.next(num_groups)
        assert len(batch) == num_groups
        assert len(set(batch)) == min(num_groups, size) or num_groups > size
        assert set(batch) <= set(range(size))


def test_leftover_prompts_of_an_epoch_change():
    sampler = PromptSampler(5, seed=0)
    left = {(set(range(5)) - set(sampler.next(2) + sampler.next(2))).pop() for _ in range(20)}
    assert left == set(range(5))


def test_resumes_from_one_integer():
    sampler = PromptSampler(7, seed=5)
    for _ in range(4):
        sampler.next(3)
    resumed = PromptSampler(7, seed=5)
    resumed.position = json.loads(json.dumps(sampler.position))
    assert [resumed.next(3) for _ in range(6)] == [sampler.next(3) for _ in range(6)]


def test_sampler_over_nothing():
    with pytest.raises(UserError, match="over 0 prompts"):
        PromptSampler(0, seed=0)


def test_every_row_knows_where_it_came_from(tmp_path):
    (tmp_path / "a.txt").write_text("\na cat\n\na dog\n")
    loaded = load_prompts(tmp_path / "a.txt")
    assert [loaded.place(i) for i in range(2)] == [f"line {n} of '{tmp_path}/a.txt'" for n in (2, 4)]
    assert loaded.subset([1]).place(0) == load_prompts(loaded.subset([1])).place(0) == loaded.place(1)
    assert load_prompts(["a", "b"]).place(1) == "prompt number 2"
    assert PromptSet(["a"], [{}]).place(0) == "prompt 0"
    assert load_prompts("shapes:seen").place(2) == "prompt 3 of 'shapes:seen'"
