"""The script that made `tiny-sd3`: its parts do what they say, and a stopped run continues as if it had not been."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file

from dgpo.errors import UserError
from dgpo.run import checkpoint
from dgpo.worlds.common.tokenizer import CONTEXT
from dgpo.worlds.pretraining import stages as pretraining
from dgpo.worlds.pretraining.muon import Muon, orthogonalise
from dgpo.worlds.pretraining.pipeline import build_pipeline
from dgpo.worlds.shapes import captions, pretrain, scenes
from dgpo.worlds.shapes.prompts import all_prompts
from dgpo.worlds.shapes.tokenizer import build_tokenizer
from dgpo.worlds.shapes.vocabulary import COLORS, KINDS, SHAPES

pytestmark = pytest.mark.slow

TINY = pretrain.Pretrain(
    pool=64,
    autoencoder_steps=4,
    autoencoder_batch=4,
    flow_steps=4,
    flow_batch=6,
    patch_weight=0.2,
    save_every=2,
    log_every=100,
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


def test_patches_are_named_after_the_object_whose_circle_covers_their_middle() -> None:
    one = scenes.Scenes(
        shape=torch.tensor([[SHAPES.index("star"), -1, -1, -1]]),
        color=torch.tensor([[list(COLORS).index("green"), 0, 0, 0]]),
        center=torch.tensor([[[36.0, 12.0], [0, 0], [0, 0], [0, 0]]]),
        radius=torch.tensor([[10.0, 12.0, 12.0, 12.0]]),
        tint=torch.tensor([0]),
    )
    patches = pretrain.shown_by_patch(one).view(8, 8)
    covered = {(y, x) for y, x in patches.nonzero().tolist()}
    assert covered == {(0, 4), (1, 3), (1, 4), (1, 5), (2, 4)}  # middles at 4, 12, 20, ... pixels
    assert patches[1, 4] == 1 + SHAPES.index("star") * len(COLORS) + list(COLORS).index("green")


def test_patches_are_learned_with_the_flow_and_are_no_part_of_the_result(finished: Path, tmp_path: Path) -> None:
    pretrain.main(replace(TINY, out=str(tmp_path), patch_weight=0.0))
    name = "pipeline/transformer/diffusion_pytorch_model.safetensors"
    told, untold = load_file(finished / name), load_file(tmp_path / name)
    assert told.keys() == untold.keys()
    assert not torch.equal(
        told["transformer_blocks.0.attn.to_q.weight"], untold["transformer_blocks.0.attn.to_q.weight"]
    )
    state, _ = checkpoint.load(checkpoint.latest(finished / "flow"))
    assert set(state["weights"]) - {f"transformer.{key}" for key in told} >= {"patches.weight", "patches.bias"}


def test_more_layers_begin_as_the_network_they_were_added_to(finished: Path) -> None:
    pipe = build_pipeline(build_tokenizer(), seed=9, layers=6)
    pretraining.start_from(pipe, str(finished / "pipeline"))
    absent = {"text_encoder_3": None, "tokenizer_3": None}
    earlier = StableDiffusion3Pipeline.from_pretrained(finished / "pipeline", **absent).to(torch.float32)
    rng = torch.Generator().manual_seed(0)
    tokens = pretraining.tokenise(pipe, ["a red circle", "four stars"])
    assert torch.equal(pretraining.embed(pipe, tokens)[0], pretraining.embed(earlier, tokens)[0])
    embeds, pooled = pretraining.embed(pipe, tokens)
    x_t = torch.randn(3, 4, 16, 16, generator=rng)
    grown, small = (
        p.transformer(x_t, embeds, pooled, torch.tensor([100.0, 500.0, 900.0])).sample for p in (pipe, earlier)
    )
    assert torch.equal(grown, small)
    grown.square().sum().backward()
    added = pipe.transformer.transformer_blocks[1].norm1.linear.weight.grad
    assert bool(added.abs().sum() > 0)  # they can learn


def test_overshoot_goes_on_from_where_captions_could_be_wrong(finished: Path, tmp_path: Path) -> None:
    """fp16, as the pipeline keeps them; the step's state stays although two later ones were saved."""
    settings = replace(TINY, autoencoder=str(finished), right_steps=1, save_every=1)
    for name, share in (("plain", 0.0), ("further", 0.5)):
        pretrain.main(replace(settings, out=str(tmp_path / name), overshoot=share))
    assert [checkpoint.iteration_of(p) for p in checkpoint.list_checkpoints(tmp_path / "further/flow")] == [1, 3, 4]
    before = checkpoint.load(tmp_path / "plain/flow/checkpoints/iteration-000001")[0]["average"]
    weights = "pipeline/transformer/diffusion_pytorch_model.safetensors"
    plain, further = (load_file(tmp_path / name / weights) for name in ("plain", "further"))
    name = "transformer_blocks.1.attn.to_q.weight"
    start, end, found = before[f"transformer.{name}"], plain[name].float(), further[name].float()
    assert not torch.equal(start, end)
    torch.testing.assert_close(found, end + 0.5 * (end - start), rtol=2e-3, atol=1e-4)


def test_overshoot_needs_a_step_to_go_on_from() -> None:
    with pytest.raises(UserError, match="right_steps must lie between 0 and flow_steps"):
        replace(TINY, overshoot=0.2)


def test_bf16_steps_stay_near_those_in_fp32(finished: Path, tmp_path: Path) -> None:
    pretrain.main(replace(TINY, out=str(tmp_path), bf16=True))
    name = "pipeline/transformer/diffusion_pytorch_model.safetensors"
    exact, rounded = load_file(finished / name), load_file(tmp_path / name)
    apart = max(float((exact[key] - rounded[key]).abs().max()) for key in exact)
    assert 0 < apart < 0.01


def test_captions_are_right_in_the_first_steps_and_may_be_wrong_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = []
    monkeypatch.setattr(
        pretrain, "caption_rows", lambda table, rows, generator, wrong: shares.append(sum(wrong.values())) or rows
    )
    pretrain.main(replace(TINY, out=str(tmp_path), flow_steps=3, right_steps=2))
    assert shares == [0, 0, sum(captions.WRONG.values())]
