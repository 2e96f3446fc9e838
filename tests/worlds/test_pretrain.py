"""The script that made `tiny-sd3`: its parts do what they say, and a stopped run continues as if it had not been."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dgpo.worlds import pretraining
from dgpo.worlds.muon import Muon, orthogonalise
from dgpo.worlds.pipeline import build_pipeline
from dgpo.worlds.shapes import captions, pretrain, scenes
from dgpo.worlds.shapes.prompts import all_prompts
from dgpo.worlds.shapes.tokenizer import build_tokenizer
from dgpo.worlds.shapes.vocabulary import KINDS
from dgpo.worlds.tokenizer import CONTEXT

TINY = pretrain.Pretrain(
    pool=64, autoencoder_steps=4, autoencoder_batch=4, flow_steps=4, flow_batch=6, save_every=2, log_every=100
)


def test_every_word_is_one_token_and_every_prompt_fits() -> None:
    tokenizer = build_tokenizer()
    for kind in KINDS:
        for prompt in all_prompts(kind):
            ids = tokenizer(prompt["prompt"]).input_ids
            assert len(ids) == len(prompt["prompt"].split()) + 2 <= CONTEXT
            assert tokenizer.decode(ids, skip_special_tokens=True).strip() == prompt["prompt"]


def test_unknown_words_are_read_by_bytes() -> None:
    tokenizer = build_tokenizer()
    ids = tokenizer("Größe 7").input_ids
    assert tokenizer.unk_token_id not in ids[1:-1]


def test_the_stated_share_of_captions_is_wrong_and_only_in_the_kinds_own_respect() -> None:
    table = captions.build_captions()
    rng = torch.Generator().manual_seed(0)
    rows = captions.draw_prompts(table, 20_000, rng)
    said = captions.caption_rows(table, rows, rng, captions.WRONG)
    for number, kind in enumerate(KINDS):
        of_kind = table.kind[rows] == number
        assert of_kind.float().mean() == pytest.approx(captions.SHARE[kind], abs=0.02)
        assert (said != rows)[of_kind].float().mean() == pytest.approx(captions.WRONG[kind], abs=0.03)
    assert bool((table.kind[said] == table.kind[rows]).all())
    swapped = next(p for p in table.prompts if p["prompt"] == "a red circle and a blue star")
    row = table.prompts.index(swapped)
    assert [table.prompts[i]["prompt"] for i in table.wrong[row, : table.num_wrong[row]]] == [
        "a blue circle and a red star"
    ]


def test_embed_is_what_the_pipeline_encodes() -> None:
    pipe = build_pipeline(build_tokenizer(), seed=3)
    texts = ["a red circle", "four stars"]
    embeds, pooled = pretraining.embed(pipe, pretraining.tokenise(pipe, texts)[:-1])
    theirs, _, their_pooled, _ = pipe.encode_prompt(
        texts, None, None, do_classifier_free_guidance=False, max_sequence_length=0
    )
    torch.testing.assert_close(embeds, theirs, rtol=0, atol=1e-6)
    torch.testing.assert_close(pooled, their_pooled, rtol=0, atol=1e-6)


def test_orthogonalise_moves_singular_values_near_one() -> None:
    matrices = torch.randn(3, 48, 24, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrices))
    assert float(values.min()) > 0.6
    assert float(values.max()) < 1.3
    torch.testing.assert_close(orthogonalise(matrices.mT), orthogonalise(matrices).mT)


def test_muon_lowers_a_quadratic() -> None:
    weight = torch.nn.Parameter(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))
    optimizer = Muon([weight], lr=0.1)
    before = float(weight.detach().square().sum())
    for _ in range(150):
        optimizer.zero_grad()
        weight.square().sum().backward()
        optimizer.step()
    assert float(weight.detach().square().sum()) < 0.1 * before


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pretrained")
    pretrain.main(replace(TINY, out=str(out)))
    return out


def test_a_stopped_run_continues_bit_for_bit(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    real = pretraining.embed

    def stops(*arguments):
        nonlocal calls
        calls += 1
        if calls == 4:  # the fourth flow step: two are in the checkpoint, one is lost
            raise KeyboardInterrupt
        return real(*arguments)

    settings = replace(TINY, out=str(tmp_path))
    monkeypatch.setattr(pretraining, "embed", stops)
    with pytest.raises(KeyboardInterrupt):
        pretrain.main(settings)
    monkeypatch.undo()
    pretrain.main(settings)
    for part in ("transformer", "text_encoder", "text_encoder_2", "vae"):
        (name,) = [p.name for p in (finished / "pipeline" / part).glob("*.safetensors")]
        one, other = (load_file(out / "pipeline" / part / name) for out in (finished, tmp_path))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), part


def test_the_result_is_a_stock_pipeline_in_half_precision(finished: Path) -> None:
    from diffusers import StableDiffusion3Pipeline

    pipe = StableDiffusion3Pipeline.from_pretrained(finished / "pipeline", text_encoder_3=None, tokenizer_3=None)
    images = pipe("two stars", num_inference_steps=2, output_type="pt").images
    assert images.shape == (1, 3, 64, 64)
    sizes = [os.path.getsize(path) for path in (finished / "pipeline").rglob("*.safetensors")]
    assert sum(sizes) < 12e6


def test_scenes_of_a_pool_show_their_prompts() -> None:
    table = captions.build_captions()
    rows, pool = pretrain._pool(table, TINY)
    wanted = scenes.requests(table.prompts).rows(rows)
    assert bool((pool.shape == wanted.shape).all())
    asked = wanted.color >= 0
    assert bool((pool.color[asked] == wanted.color[asked]).all())


def test_captions_are_right_in_the_first_steps_and_may_be_wrong_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = []
    monkeypatch.setattr(
        pretrain, "caption_rows", lambda table, rows, generator, wrong: shares.append(sum(wrong.values())) or rows
    )
    pretrain.main(replace(TINY, out=str(tmp_path), flow_steps=3, right_steps=2))
    assert shares == [0, 0, sum(captions.WRONG.values())]
