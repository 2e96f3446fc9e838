"""PickScore, CLIP score, aesthetic and HPSv2 on tiny random models: formulas, batching, files; no published weights."""

from __future__ import annotations

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from tiny_published import clip_config, open_clip_shapes, save_clip, values
from torch import nn
from transformers import AutoTokenizer, CLIPModel
from transformers.models.clip import CLIPImageProcessor

from dgpo.core.seeds import generator
from dgpo.errors import UserError
from dgpo.rewards.base import RewardError, call_reward
from dgpo.rewards.builtin.aesthetic import Aesthetic
from dgpo.rewards.builtin.clip import ClipScore
from dgpo.rewards.builtin.hpsv2 import HPSv2, renamed
from dgpo.rewards.builtin.pickscore import PickScore

IMAGES = (torch.rand(5, 3, 28, 28, generator=generator(0, "test")) * 255).round() / 255
PROMPTS = ["a cat", "two dogs", "a cat", "a very long prompt that is cut", "x"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return str(save_clip(tmp_path_factory.mktemp("clip") / "tiny"))


@pytest.fixture(scope="module")
def reference(folder) -> dict[str, torch.Tensor]:
    """Logits and image embeddings by transformers alone, one pair at a time."""
    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    pixels = CLIPImageProcessor.from_pretrained(folder)(images=list(IMAGES), do_rescale=False, return_tensors="pt")
    logits, embeds = [], []
    for row, prompt in enumerate(PROMPTS):
        tokens = tokenizer([prompt], truncation=True, max_length=16, return_tensors="pt")
        with torch.no_grad():
            out = model(pixel_values=pixels["pixel_values"][row : row + 1], **tokens)
        logits.append(out.logits_per_image[0, 0])
        embeds.append(out.image_embeds[0])
    return {"logits": torch.stack(logits), "embeds": torch.stack(embeds), "scale": model.logit_scale.exp().detach()}


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_pickscore_is_the_scaled_cosine(folder, reference):
    found = PickScore(folder, folder)(IMAGES, PROMPTS, [{}] * 5)
    close(found, reference["logits"])
    assert found.std() > 0.1  # the tiny model does tell them apart
    close(PickScore(folder, folder, scale=1 / 26)(IMAGES, PROMPTS, []), reference["logits"] / 26)


def test_clip_score_is_the_cosine(folder, reference):
    cosine = reference["logits"] / reference["scale"]
    assert cosine.abs().max() <= 1
    close(ClipScore(folder)(IMAGES, PROMPTS, []), cosine)
    close(ClipScore(folder, scale=100)(IMAGES, PROMPTS, []), cosine * 100)


def test_batches_change_nothing(folder):
    whole, parts = (ClipScore(folder, batch_size=size)(IMAGES, PROMPTS, []) for size in (32, 2))
    close(whole, parts)


def test_bfloat16_scores_are_near(folder):
    found = ClipScore(folder, dtype="bfloat16", device="cpu")(IMAGES, PROMPTS, [])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, ClipScore(folder)(IMAGES, PROMPTS, []), rtol=0, atol=0.05)


def test_a_shared_prompt_is_encoded_once(folder):
    reward, seen = ClipScore(folder), []
    text_model = reward.towers.parts.model.text_model
    text_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    reward(IMAGES, PROMPTS, [])
    assert seen == [4]


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_aesthetic_is_the_mlp_of_the_embedding(folder, reference, tmp_path, suffix):
    published = nn.Sequential(
        nn.Linear(24, 1024), nn.Dropout(0.2), nn.Linear(1024, 128), nn.Dropout(0.2),
        nn.Linear(128, 64), nn.Dropout(0.1), nn.Linear(64, 16), nn.Linear(16, 1),
    ).eval()  # fmt: skip
    tensors, path = (
        {f"layers.{name}": value for name, value in published.state_dict().items()},
        tmp_path / f"m.{suffix}",
    )
    save_file(tensors, path) if suffix == "safetensors" else torch.save(tensors, path)
    found = Aesthetic(str(path), folder)(IMAGES, PROMPTS, [])
    close(found, published(reference["embeds"]).squeeze(-1).detach())


def test_aesthetic_refuses_weights_of_another_network(folder, tmp_path):
    save_file({"layers.0.weight": torch.zeros(7, 24)}, tmp_path / "m.safetensors")
    with pytest.raises(UserError, match=r"m.safetensors' are not those"):
        Aesthetic(str(tmp_path / "m.safetensors"), folder)(IMAGES, PROMPTS, [])


class TokenRows:
    """Stands for a tokenizer: the rows of ids that the authors' code was given, by name."""

    def __init__(self, ids: torch.Tensor) -> None:
        self.ids = ids

    def __call__(self, names, **_):
        rows = self.ids[[int(name) for name in names]]
        return {"input_ids": rows, "attention_mask": torch.ones_like(rows)}


def test_hpsv2_gives_the_numbers_of_its_authors_code(tmp_path):
    """The numbers are those of hpsv2.src.open_clip.model.CLIP with these weights, pixels and tokens."""
    rng = torch.Generator().manual_seed(1)
    pixels, ids = torch.randn(3, 3, 28, 28, generator=rng), torch.zeros(3, 16, dtype=torch.long)
    for row, length in enumerate((14, 5, 2)):
        ids[row, 0], ids[row, length] = 48, 49
        ids[row, 1:length] = torch.randint(1, 48, (length - 1,), generator=rng)
    torch.save({"state_dict": values(open_clip_shapes())}, tmp_path / "hps.pt")
    save_clip(tmp_path / "processor")
    clip_config(vocab_size=50, bos_token_id=48, eos_token_id=49, pad_token_id=0).save_pretrained(tmp_path / "processor")
    reward = HPSv2(str(tmp_path / "hps.pt"), str(tmp_path / "processor"))
    reward.towers.parts = reward.towers.parts._replace(tokenizer=TokenRows(ids), preprocess=lambda x: x)
    found = reward(pixels, ["0", "1", "2"], [])
    close(found, torch.tensor([-0.05964384227991104, -0.028203584253787994, -0.02908608317375183]))


def test_hpsv2_takes_a_folder_of_transformers_too(folder):
    close(HPSv2(folder, folder)(IMAGES, PROMPTS, []), ClipScore(folder)(IMAGES, PROMPTS, []))


@pytest.mark.parametrize("name", ["visual.attnpool.weight", "transformer.resblocks.0.ls_1.weight"])
def test_hpsv2_refuses_tensors_that_it_does_not_know(name):
    with pytest.raises(UserError, match=name):
        renamed({name: torch.zeros(1)})


def test_weights_that_lack_a_tensor_are_refused(folder, tmp_path):
    tensors = values(open_clip_shapes())
    del tensors["visual.proj"]
    torch.save({"state_dict": tensors}, tmp_path / "hps.pt")
    clip_config(vocab_size=50).save_pretrained(save_clip(tmp_path / "processor"))
    with pytest.raises(UserError, match=r"visual_projection\.weight"):
        HPSv2(str(tmp_path / "hps.pt"), str(tmp_path / "processor"))(IMAGES, PROMPTS, [])


@pytest.mark.parametrize("reward", [PickScore("no/such-model"), ClipScore("./nowhere"), HPSv2("nowhere/at/all.pt")])
def test_weights_that_cannot_be_had_are_told_when_first_used(reward, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="cannot load '"):
        reward(IMAGES, PROMPTS, [])


def test_bad_settings_are_told(folder):
    with pytest.raises(UserError, match="dtype='int8'"):
        ClipScore(folder, dtype="int8")(IMAGES, PROMPTS, [])
    with pytest.raises(UserError, match="batch_size=0"):
        PickScore(folder, batch_size=0)


def test_pixels_that_are_not_finite_never_become_a_score(folder):
    images = IMAGES.clone()
    images[2, 0, 5, 5] = float("nan")
    with pytest.raises(RewardError, match=r"nan.*Image 2 of 5"):
        call_reward("clip", ClipScore(folder), images, PROMPTS, [{}] * 5)
