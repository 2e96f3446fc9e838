from __future__ import annotations

import itertools

import pytest
import torch
from diffusers import SD3Transformer2DModel
from peft import get_peft_model_state_dict

from dgpo.errors import UserError
from dgpo.models import LoraConfig
from dgpo.models.weights import full_weights

SETS = ("policy", "ref", "old", "ema")
PROMPTS = ["a red cat", "two dogs", ""]


@pytest.fixture(params=["lora", "full"])
def model(request, load):
    return load(finetune=request.param)


def velocity(model, weights="policy"):
    x = model.init_noise([torch.Generator().manual_seed(i) for i in range(3)])
    return model.velocity(x, torch.tensor([1.0, 0.6, 0.1]), model.encode(PROMPTS), weights=weights)


def stock_velocity(transformer, model):
    x = model.init_noise([torch.Generator().manual_seed(i) for i in range(3)])
    cond = model.encode(PROMPTS)
    with torch.no_grad():
        t = torch.tensor([1.0, 0.6, 0.1])
        return transformer(x, cond.tensors["prompt_embeds"], cond.tensors["pooled"], t * 1000).sample


def perturb(model, *names):
    """Move the sets away from each other. `tensors` shares storage, so adding in place changes the network."""
    for seed, name in enumerate(names):
        generator = torch.Generator().manual_seed(seed)
        for tensor in model.weights.tensors(name).values():
            tensor.add_(0.05 * torch.randn(tensor.shape, generator=generator))


def addresses(model):
    return {name: [t.data_ptr() for t in model.weights.tensors(name).values()] for name in SETS}


def trainable(model):
    return [parameter for parameter in model.network.parameters() if parameter.requires_grad]


def test_all_sets_start_as_the_pretrained_network(model, stock):
    pretrained = stock_velocity(stock.transformer, model)
    for name in SETS:
        assert torch.equal(velocity(model, name), pretrained), name
    for key, tensor in model.weights.tensors("policy").items():
        for name in ("old", "ema"):
            assert torch.equal(tensor, model.weights.tensors(name)[key])


def test_each_set_answers_with_its_own_values_and_ref_stays_the_pretrained_network(model, stock):
    perturb(model, "policy", "old", "ema")
    answers = {name: velocity(model, name) for name in SETS}
    for one, other in itertools.combinations(SETS, 2):
        assert (answers[one] - answers[other]).abs().max() > 1e-3, (one, other)
    assert torch.equal(answers["ref"], stock_velocity(stock.transformer, model))


def test_use_nests_and_an_exception_restores_what_was_before(model):
    perturb(model, "policy", "old")
    expected = {name: velocity(model, name) for name in ("policy", "old", "ref")}

    def assert_bound(name):
        assert torch.equal(stock_velocity(model.network, model), expected[name])

    def fail_in(name, then):
        with model.weights.use(name):
            assert_bound(name)
            then()
            assert_bound(name)
            raise ZeroDivisionError

    def inner():
        with pytest.raises(ZeroDivisionError):
            fail_in("ref", lambda: fail_in("policy", lambda: None))

    with pytest.raises(ZeroDivisionError):
        fail_in("old", inner)
    assert_bound("policy")


def test_a_switch_copies_and_moves_no_tensor(model):
    before = addresses(model)
    every = [pointer for pointers in before.values() for pointer in pointers]
    assert len(set(every)) == len(every), "no two sets share storage"
    for name in SETS:
        with model.weights.use(name):
            assert addresses(model) == before
            bound = {parameter.data_ptr() for parameter in model.network.parameters()}
            assert bound >= set(before[name])
    assert addresses(model) == before


def test_only_the_policy_ever_requires_a_gradient(model):
    policy = {id(parameter) for parameter in model.weights.parameters()}
    assert policy == {id(parameter) for parameter in trainable(model)}
    assert all(parameter.dtype == torch.float32 for parameter in model.weights.parameters())
    for name in ("ref", "old", "ema"):
        assert not velocity(model, name).requires_grad
        with model.weights.use(name):
            assert {id(parameter) for parameter in trainable(model)} <= policy
        assert {id(parameter) for parameter in trainable(model)} == policy
    assert velocity(model).requires_grad
    frozen = [model.pipeline.vae, model.pipeline.text_encoder, model.pipeline.text_encoder_2]
    assert not any(parameter.requires_grad for part in frozen for parameter in part.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("finetune", ["lora", "full"])
def test_gradients_are_the_same_after_other_sets_answered_and_with_checkpointing(load, finetune):
    def gradients(gradient_checkpointing, others):
        model = load(finetune=finetune, gradient_checkpointing=gradient_checkpointing)
        perturb(model, "policy", "old", "ema")
        v = velocity(model)
        for name in others:
            velocity(model, name)
        calls = []
        model.network.transformer_blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
        v.square().mean().backward()
        assert len(calls) == gradient_checkpointing, "blocks are computed again in backward"
        return [parameter.grad for parameter in model.weights.parameters()]

    plain = gradients(False, ())
    assert any(grad is not None and grad.abs().max() > 0 for grad in plain)
    for variant in (gradients(False, ("ref", "old", "ema")), gradients(True, ("ref", "old", "ema"))):
        for expected, grad in zip(plain, variant, strict=True):
            torch.testing.assert_close(grad, expected, rtol=0, atol=0)


def test_ema_update_moves_one_set_towards_the_policy(model):
    perturb(model, "policy", "old")
    before = {name: {k: v.clone() for k, v in model.weights.tensors(name).items()} for name in SETS}
    model.weights.ema_update("old", 0.75)
    for key, tensor in model.weights.tensors("old").items():
        expected = 0.75 * before["old"][key] + 0.25 * before["policy"][key]
        torch.testing.assert_close(tensor, expected)
    for name in ("policy", "ref", "ema"):
        assert all(torch.equal(t, before[name][k]) for k, t in model.weights.tensors(name).items())
    model.weights.ema_update("old", 0.0)
    assert torch.equal(velocity(model, "old"), velocity(model, "policy"))
    for name in ("policy", "ref"):
        with pytest.raises(UserError, match="no moving average"):
            model.weights.ema_update(name, 0.5)


@pytest.mark.parametrize("finetune", ["lora", "full"])
def test_saved_tensors_load_into_another_model_under_the_same_keys(load, finetune):
    model, other = load(finetune=finetune), load(finetune=finetune, seed=1)
    perturb(model, *SETS)
    keys = set(model.weights.tensors("policy"))
    assert keys == set(dict(model.weights.named_parameters()))
    assert not any(word in key for key in keys for word in SETS)
    for name in SETS:
        assert set(model.weights.tensors(name)) in (keys, set())
        other.weights.load(name, {key: tensor.clone() for key, tensor in model.weights.tensors(name).items()})
    for name in SETS:
        assert torch.equal(velocity(other, name), velocity(model, name))
    other.weights.load("ema", model.weights.tensors("policy"))
    assert torch.equal(velocity(other, "ema"), velocity(model, "policy"))


def test_tensors_that_do_not_fit_are_refused_and_nothing_is_changed(model):
    good = {key: tensor.clone() + 1 for key, tensor in model.weights.tensors("old").items()}
    before = {key: tensor.clone() for key, tensor in model.weights.tensors("old").items()}
    first, second, *_ = good
    for bad, message in [
        ({key: good[key] for key in good if key != first}, f"{first} is missing"),
        (good | {"stranger": torch.ones(1)}, "stranger is unknown"),
        (good | {second: torch.ones(1, 7)}, r"\(1, 7\) and must be"),
    ]:
        with pytest.raises(UserError, match=message):
            model.weights.load("old", bad)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.weights.tensors("old").items())


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [1, 4, 8, 6])
@pytest.mark.parametrize("name", ["policy", "ema"])
def test_an_exported_lora_draws_the_same_in_stock_diffusers(load, stock, tmp_path, name, alpha):
    """Bit for bit where alpha / rank is a power of two; else B times it rounds."""
    model = load(lora=LoraConfig(rank=4, alpha=alpha))
    perturb(model, "policy", "ema")
    model.weights.export(tmp_path, name)
    stock.load_lora_weights(tmp_path)
    own, expected = velocity(model, name), stock_velocity(stock.transformer, model)
    torch.testing.assert_close(own, expected, rtol=1e-4 if alpha == 6 else 0, atol=1e-5 if alpha == 6 else 0)


@pytest.mark.parametrize("name", ["policy", "ema"])
def test_an_exported_transformer_draws_the_same_in_stock_diffusers(load, tmp_path, name):
    model = load(finetune="full")
    perturb(model, "policy", "ema")
    model.weights.export(tmp_path, name)
    assert list((tmp_path / "transformer").glob("*.safetensors"))
    reloaded = SD3Transformer2DModel.from_pretrained(tmp_path / "transformer")
    assert torch.equal(stock_velocity(reloaded, model), velocity(model, name))


def test_lora_keys_are_those_of_stock_files(load):
    model = load()
    perturb(model, "policy", "old")
    for name in ("policy", "old"):
        stock = get_peft_model_state_dict(model.network, adapter_name=name)
        own = model.weights.tensors(name)
        assert own.keys() == stock.keys()
        assert all(torch.equal(own[key], stock[key]) for key in own)


def test_lora_reaches_every_attention_projection_and_scales_by_alpha_over_rank(load):
    model = load(lora=LoraConfig(rank=2, alpha=6))
    layers = {key.rpartition(".lora_")[0] for key in model.weights.tensors("policy")}
    projections = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    network = {key.removesuffix(".base_layer") for key, _ in model.network.named_modules()}
    assert layers == {key for key in network if key.endswith(tuple(f".attn.{name}" for name in projections))}
    assert any(".attn2." in key for key in network), "the second attention of a dual layer is not trained"
    layer = model.network.transformer_blocks[0].attn.to_q
    for parameter in model.weights.parameters():
        parameter.data.fill_(1.0)
    torch.testing.assert_close(
        layer(torch.ones(1, 16)) - layer.base_layer(torch.ones(1, 16)), torch.full((1, 16), 96.0)
    )


@pytest.mark.slow
def test_lora_starts_from_its_seed_alone(load):
    def adapters(seed, lora=LoraConfig(rank=8)):  # noqa: B008
        return load(seed=seed, lora=lora).weights.tensors("policy")

    first, same, other = adapters(1), adapters(1), adapters(2)
    uniform = adapters(1, LoraConfig(rank=8, init="kaiming"))
    assert all(torch.equal(first[key], same[key]) for key in first)
    for key in (key for key in first if ".lora_A." in key):
        assert not torch.equal(first[key], other[key])
        assert first[key].abs().max() > uniform[key].abs().max()
    assert not any(first[key].any() for key in first if ".lora_B." in key)
    spread = torch.cat([first[key].flatten() for key in first if ".lora_A." in key]).std()
    torch.testing.assert_close(spread, torch.tensor(1 / 8), rtol=0.05, atol=0)


def test_sets_that_are_not_asked_for_are_not_made(load):
    for finetune in ("lora", "full"):
        model = load(finetune=finetune, sets=("old",))
        assert model.weights.names == ("policy", "old")
        for name in ("ref", "ema"):
            with pytest.raises(UserError, match=f"{name!r} was not made .* has policy, old"):
                velocity(model, name)
    adapters = [key for key, _ in load(sets=("ref",)).network.named_parameters() if ".lora_" in key]
    assert adapters
    assert all(".policy." in key for key in adapters)


def test_bad_names_and_settings_are_explained(load, stock, tmp_path):
    model = load()
    with pytest.raises(UserError, match="Did you mean 'policy'"), model.weights.use("polcy"):
        pass
    with pytest.raises(UserError, match="nothing to export"):
        model.weights.export(tmp_path, "ref")
    with pytest.raises(UserError, match=r"no linear layer is named 'to_qq'\. Did you mean 'attn.to_q'"):
        load(lora=LoraConfig(target_modules=("to_q", "to_qq")))
    with pytest.raises(UserError, match="rank=0"):
        load(lora=LoraConfig(rank=0))
    with pytest.raises(UserError, match="Did you mean 'old'"):
        full_weights(stock.transformer, ("olld",))


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("finetune", ["lora", "full"])
def test_compiled_blocks_answer_for_every_set_as_plain_ones_do(load, finetune, checkpointing, monkeypatch):
    """With the backend that traces and differentiates as usual and leaves code generation out, to save minutes."""
    compiled = []
    default = torch.nn.Module.compile

    def fast(module, **options):
        compiled.append(type(module).__name__)
        default(module, backend="aot_eager", **options)

    monkeypatch.setattr(torch.nn.Module, "compile", fast)

    def answers(compile):
        model = load(finetune=finetune, compile=compile, gradient_checkpointing=checkpointing)
        perturb(model, "policy", "old", "ema")
        v = {name: velocity(model, name) for name in ("policy", "ref", "old", "ema")}
        v["policy"].square().mean().backward()
        with torch.no_grad():
            v["without gradient"] = velocity(model)
        return v, [parameter.grad for parameter in model.weights.parameters()]

    (plain, plain_grads), (v, grads) = answers(False), answers(True)
    assert set(compiled) == {"JointTransformerBlock"}
    assert not torch.equal(v["ref"], v["policy"])
    for name, value in plain.items():
        torch.testing.assert_close(v[name], value, rtol=1e-4, atol=1e-5)
    for expected, grad in zip(plain_grads, grads, strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_compile_needs_a_compiler_and_blocks(load, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(UserError, match="compile needs a compiler for cpu code, and there is no"):
        load(compile=True)
    monkeypatch.setenv("CXX", "my-compiler")
    with pytest.raises(UserError, match="there is no my-compiler on the path"):
        load(compile=True)
    monkeypatch.setattr("shutil.which", lambda name: name)
    monkeypatch.setattr(SD3Transformer2DModel, "_no_split_modules", None)
    with pytest.raises(UserError, match="names no repeated blocks of a SD3Transformer2DModel"):
        load(compile=True)
