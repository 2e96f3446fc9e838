"""ImageReward on tiny random weights in the authors' format: their numbers, files, batches; no published weights."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from tiny_published import imagereward_values
from transformers import BertTokenizer

from dgpo.core.seeds import generator
from dgpo.errors import UserError
from dgpo.rewards.builtin.imagereward import ImageReward

THEIRS = [0.2375137209892273, 0.6532118320465088, 1.4303309917449951]
IMAGES = torch.rand(5, 3, 48, 40, generator=generator(0, "test"))
PROMPTS = ["a b", "b", "a a a b", "b a", "a"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> str:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]
    folder = tmp_path_factory.mktemp("bert")
    BertTokenizer(vocab={word: index for index, word in enumerate(words)}).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("imagereward") / "ImageReward.pt"
    stored = {"blip.text_encoder.embeddings.position_ids": torch.arange(40)[None]}  # as in the published file
    torch.save(imagereward_values() | stored, path)
    return str(path)


def test_the_numbers_of_the_authors_code(weights, tokenizer):
    """The numbers are those of ImageReward.models.BLIP, the MLP and the formula with these weights and inputs."""
    rng = torch.Generator().manual_seed(1)
    pixels, ids = torch.randn(3, 3, 32, 32, generator=rng), torch.randint(5, 50, (3, 35), generator=rng)
    masks = (torch.arange(35)[None] < torch.tensor([35, 7, 3])[:, None]).long()
    reward = ImageReward(weights, tokenizer)

    def tokens(names, **_):
        rows = [int(name) for name in names]
        return {"input_ids": ids[rows], "attention_mask": masks[rows]}

    reward.parts = reward.parts._replace(tokenizer=tokens, preprocess=lambda x: x)
    torch.testing.assert_close(reward(pixels, ["0", "1", "2"], []), torch.tensor(THEIRS), rtol=1e-5, atol=1e-5)


def test_batches_and_the_file_format_change_nothing(weights, tokenizer, tmp_path):
    whole = ImageReward(weights, tokenizer)(IMAGES, PROMPTS, [])
    assert whole.std() > 0.01
    save_file(imagereward_values(), tmp_path / "w.safetensors")
    parts = ImageReward(str(tmp_path / "w.safetensors"), tokenizer, batch_size=2)(IMAGES, PROMPTS, [])
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-5)


def test_prompt_and_image_both_count(weights, tokenizer):
    reward = ImageReward(weights, tokenizer)
    same = reward(IMAGES[:1].repeat(2, 1, 1, 1), ["a b", "b a"], [])
    assert same[0] != same[1]
    same = reward(IMAGES[:2], ["a b", "a b"], [])
    assert same[0] != same[1]


def test_other_files_are_refused(tokenizer, tmp_path):
    save_file({"weight": torch.ones(1)}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="is no ImageReward"):
        ImageReward(str(tmp_path / "w.safetensors"), tokenizer)(IMAGES, PROMPTS, [])
    tensors = imagereward_values()
    del tensors["blip.visual_encoder.norm.weight"]
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"post_layernorm\.weight"):
        ImageReward(str(tmp_path / "w.safetensors"), tokenizer)(IMAGES, PROMPTS, [])
