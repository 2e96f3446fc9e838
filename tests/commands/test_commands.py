"""The words of a command line become a config, or one message and exit code 2. Nothing is trained here."""

from __future__ import annotations

import io
import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from dgpo import __version__
from dgpo.algorithms import FlowGRPO
from dgpo.commands.configs import for_own_sets
from dgpo.commands.main import main
from dgpo.config import AUTOMATIC, Config, load_yaml, save_yaml
from dgpo.errors import NonFiniteError
from dgpo.recipes import recipe
from dgpo.rewards.base import RewardError


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Config, bool]]:
    """The configs that `dgpo train` would run, and whether it would resume."""
    seen: list[tuple[Config, bool]] = []

    def record(config: Config, resume: bool, overwrite: bool) -> SimpleNamespace:
        assert not overwrite
        seen.append((config, resume))
        interrupted = config.iterations == 7
        return SimpleNamespace(run=Path("runs/x"), iterations=3, interrupted=interrupted, requeue=False)

    monkeypatch.setattr("dgpo.training.loop.train", record)
    return seen


def test_without_arguments_the_demo_is_trained(trained: list[tuple[Config, bool]]) -> None:
    assert main(["train"]) == 0
    assert trained == [(recipe("tiny"), False)]


def test_an_interrupted_run_says_how_to_go_on(
    trained: list[tuple[Config, bool]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--iterations", "7"]) == 130
    assert "dgpo train --resume runs/x" in capsys.readouterr().out


@pytest.mark.parametrize("error", [RewardError("the reward failed"), NonFiniteError("the loss is nan")])
def test_a_run_that_fails_is_one_message_and_code_1(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(config: Config, resume: bool, overwrite: bool) -> None:
        raise error

    monkeypatch.setattr("dgpo.training.loop.train", fail)
    assert main(["train"]) == 1
    assert capsys.readouterr().err == f"dgpo: {error}\n"


def test_fields_of_every_kind(trained: list[tuple[Config, bool]]) -> None:
    words = (
        "train shapes_all --num-groups 3 --group_size=5 --out x --seed 2 --eval-every 0 --algorithm.kl-coef 0.5 "
        "--algorithm.clip-range None --optimizer.betas 0.8 0.9 --gradient-checkpointing True --finetune lora "
        "--reward-tags shapes=counting,colors --reward-failures crispness=retry(2,1)+drop "
        "--rewards shapes=1 crispness=0.3 --eval-prompts one=shapes:seen:counting two=a=b.txt --trackers"
    )
    assert main(shlex.split(words)) == 0
    config, _ = trained[0]
    assert (config.name, config.num_groups, config.group_size, config.out, config.seed) == ("shapes_all", 3, 5, "x", 2)
    assert (config.algorithm.kl_coef, config.algorithm.clip_range, config.optimizer.betas) == (0.5, None, (0.8, 0.9))
    assert config.gradient_checkpointing
    assert config.finetune == "lora"
    assert config.rewards == {"shapes": 1.0, "crispness": 0.3}
    assert config.reward_tags == {"shapes": ("counting", "colors")}
    assert config.reward_failures == {"crispness": "retry(2,1)+drop"}
    assert config.eval_prompts == {"one": "shapes:seen:counting", "two": "a=b.txt"}
    assert config.trackers == ()


@pytest.mark.parametrize(
    "word", ["--gradient-checkpointing", "--gradient_checkpointing", "--gradient-checkpointing True"]
)
def test_a_switch_needs_no_value(trained: list[tuple[Config, bool]], word: str) -> None:
    assert main(["train", *word.split(), "--seed", "2"]) == 0
    assert main(["train", "--seed", "2", *word.split()]) == 0
    assert [config.gradient_checkpointing for config, _ in trained] == [True, True]
    assert main(["train", "--gradient-checkpointing", "False"]) == 0
    assert not trained[2][0].gradient_checkpointing


@pytest.mark.parametrize("words", ["--algorithm flow_grpo", "--algorithm=flow_grpo"])
def test_another_algorithm_comes_with_its_own_defaults_and_fields(
    trained: list[tuple[Config, bool]], words: str
) -> None:
    assert main(shlex.split(f"train shapes_all {words} --algorithm.window 2 --text-dropout 0")) == 0
    assert trained[0][0] == replace(recipe("shapes_all"), algorithm=FlowGRPO(window=2))


@pytest.mark.parametrize("words", ["train words", "train --recipe words", "train --seed 3 --recipe=words"])
def test_a_recipe_may_be_named_by_a_flag(words: str, trained: list[tuple[Config, bool]]) -> None:
    assert main(words.split()) == 0
    assert replace(trained[0][0], seed=0) == recipe("words")


def test_prompts_are_a_source_or_several_texts(trained: list[tuple[Config, bool]]) -> None:
    assert main(["train", "--prompts", "mine.txt"]) == 0
    assert main(["train", "--prompts", "a red cat", "two dogs", "--eval-prompts"]) == 0
    assert [config.prompts for config, _ in trained] == ["mine.txt", ("a red cat", "two dogs")]
    assert trained[1][0].eval_prompts == {}


def test_a_model_without_a_recipe_gets_the_settings_that_fit_it(
    trained: list[tuple[Config, bool]], tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ("--prompts", "mine.txt", "--rewards", "my_rewards:warm")
    for model, said in (
        ("stabilityai/stable-diffusion-3.5-medium", "the recipe sd35m_ocr, which fits the model"),
        (str(tiny_folder), "the recipe sd35m_ocr, which fits the model"),
        ("someone/unheard-of", "the defaults; no recipe is for this model"),
        ("tiny-sd3-words", ""),
    ):
        assert main(["train", "--model", model, *own]) == 0
        assert (said in capsys.readouterr().out) if said else "no recipe is named" not in capsys.readouterr().out
    published, folder, unknown, words = (config for config, _ in trained)
    assert published.optimizer == folder.optimizer == recipe("sd35m_ocr").optimizer
    assert (published.model, folder.model) == ("stabilityai/stable-diffusion-3.5-medium", str(tiny_folder))
    assert unknown.optimizer == Config().optimizer
    assert words.optimizer == recipe("words").optimizer
    assert {config.prompts for config, _ in trained} == {"mine.txt"}


def test_an_embedded_models_metrics_stay_with_the_sets_of_its_world() -> None:
    base = recipe("tiny")
    for given, kept in (
        ([], base.eval_rewards),
        (["--eval-prompts", "seen=shapes:seen"], base.eval_rewards),
        (["--eval-prompts", "seen=shapes:seen", "mine=mine.txt"], ()),
        (["--eval-prompts=mine=mine.txt"], ()),
    ):
        assert for_own_sets(base, given).eval_rewards == kept


def test_prompts_of_ones_own_are_evaluated_in_the_place_of_the_recipes_lists(
    trained: list[tuple[Config, bool]], tmp_path: Path
) -> None:
    for words in (
        "--prompts mine.txt --rewards my_rewards:warm",
        "--prompts mine.txt --eval-prompts test=test.txt --eval-rewards crispness",
        "--prompts shapes:train:counting",
        "--rewards my_rewards:warm",
        "--recipe sd35m_ocr --prompts mine.txt",
    ):
        assert main(["train", *words.split()]) == 0
    own, given, world, reward, published = (config for config, _ in trained)
    assert (own.eval_prompts, own.eval_rewards, own.rewards) == (AUTOMATIC, (), {"my_rewards:warm": 1.0})
    assert (given.eval_prompts, given.eval_rewards) == ({"test": "test.txt"}, ("crispness",))
    assert (world.eval_prompts, world.eval_rewards) == (AUTOMATIC, ("crispness", "diversity"))
    assert (reward.eval_prompts, reward.eval_rewards) == (recipe("tiny").eval_prompts, recipe("tiny").eval_rewards)
    assert (published.eval_prompts, published.eval_rewards) == (AUTOMATIC, recipe("sd35m_ocr").eval_rewards)

    path = tmp_path / "mine.yaml"
    path.write_text("model: tiny-sd3\nprompts: [a cat]\nrewards: {shapes: 1}\neval_prompts: {test: test.txt}\n")
    assert main(["train", str(path), "--prompts", "other.txt"]) == 0
    assert trained[-1][0].eval_prompts == {"test": "test.txt"}, "a file's own are not a recipe's"


def test_a_config_file_and_its_overrides(trained: list[tuple[Config, bool]], tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "model: tiny-sd3\nprompts: shapes:train\niterations: 5\n"
        "rewards: {shapes: 1, crispness: 2}\noptimizer: {lr: 3e-4}\n"
    )
    assert main(["train", str(path), "--rewards", "shapes=2", "--seed", "1"]) == 0
    known = {"model": "tiny-sd3", "prompts": "shapes:train"}
    assert trained[0][0] == Config(**known, iterations=5, rewards={"shapes": 2.0}, seed=1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train --grop-size 4", "unknown field 'grop_size'. Did you mean 'group_size'?"),
        ("train --grop_size=4", "Did you mean 'group_size'?"),
        ("train --beta 3", "Did you mean 'algorithm.beta'?"),
        ("train --algorithm.bta 3", "unknown field 'algorithm.bta'. Did you mean 'algorithm.beta'?"),
        ("train --algorithm flow_gpro", "--algorithm flow_gpro is unknown. Did you mean 'flow_grpo'?"),
        ("train --algorithm", "--algorithm needs the name of one"),
        ("train --algorithm awm --algorithm.beta 3", "unknown field 'algorithm.beta'"),
        ("train --group-size four", "--group-size: invalid literal for int()"),
        ("train --group-size 3.5", "--group-size: invalid literal for int()"),
        ("train --optimizer.lr fast", "--optimizer.lr: could not convert"),
        ("train --group-size", "Missing value for argument '--group-size'"),
        ("train --finetune half", "invalid choice 'half' for argument '--finetune'"),
        ("train --rewards shapes=much", "--rewards shapes=much: 'much' is no weight; give NAME or NAME=WEIGHT"),
        ("train --rewards shapes=", "'' is no weight"),
        ("train --rewards shapes=1 shapes=2", "--rewards has 'shapes' twice"),
        ("train --rewards shapes=0", "has the weight 0, which trains on nothing; let eval_rewards name it"),
        ("train --eval-prompts a=x.txt a=y.txt", "two have the same name"),
        ("train --seed 1 --group-size 4 --seed=2", "--seed is given twice"),
        ("train --algorithm.kl-coef 0 --algorithm.kl_coef 1", "--algorithm.kl-coef is given twice"),
        ("train --sampling.guidance-scale 0", "sampling.guidance_scale=0.0 cannot work"),
        ("train --optimizer.lr nan", "optimizer.lr=nan cannot work: it must be finite"),
        ("train --eval-prompts seen", "--eval-prompts: 'seen' is not NAME=STR"),
        ("train --rewards", "dgpo: rewards is empty"),
        ("train --group-size 1", "dgpo: group_size=1 cannot work: it must be at least 2"),
        ("train --algorithm.beta -3", "dgpo: beta=-3.0 would"),
        ("train --sampling.num-inference-steps 4 --algorithm.t-sampling grid", "dgpo: algorithm.trunc_steps=6 needs"),
        ("train tinny", "dgpo: there is no recipe 'tinny'. Did you mean 'tiny'?"),
        ("train tiny shapes_all", "dgpo: 'shapes_all' has no place here"),
        ("train none.yaml", "dgpo: cannot read the config 'none.yaml'"),
        ("train tiny --recipe words", "dgpo: 'tiny' has no place here"),
        ("train --recipe", "dgpo: --recipe needs the name of one"),
        ("train --resume", "dgpo: --resume needs a run folder"),
        ("trian", "dgpo: there is no command 'trian'. Did you mean 'train'?"),
        ("eval", "dgpo: name a run folder, a model folder or id first: dgpo eval RUN|MODEL"),
        ("sample --prompt cat", "dgpo: name a run folder, a model folder or id first"),
        ("sample tiny-sd3 --promt cat", "unknown field 'promt'. Did you mean 'prompt'?"),
        ("report", "dgpo: name a run folder"),
        ("compare", "dgpo: name two run folders or more: dgpo compare RUN RUN"),
        ("compare a --out b.html", "dgpo: name two run folders or more"),
        ("compare a b", "dgpo: a is no run folder: it has no config.yaml"),
        ("compare a a", "dgpo: comparing takes two different run folders or more; got a, a"),
        ("compare a b --seed 3", "dgpo: dgpo compare has no option --seed"),
        ("report a b", "dgpo: dgpo report takes one run folder; got also b"),
    ],
)
def test_mistakes_are_one_message_and_code_2(
    words: str,
    message: str,
    trained: list[tuple[Config, bool]],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words.split()) == 2
    out, err = capsys.readouterr()
    assert message in " ".join(err.replace("│", " ").split())
    assert "Traceback" not in err
    assert not out
    assert not trained
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("", ["dgpo train", "tiny, shapes_all"]),
        ("--help", ["dgpo sample", "dgpo report"]),
        ("--version", [__version__]),
        (
            "eval --help",
            ["usage: dgpo eval RUN|MODEL", "--eval-prompts", "The defaults below are a model's. A run has"],
        ),
        (
            "eval tiny-sd3 --help",
            ["The defaults below are those of tiny-sd3.", "(default: shapes=0.5 shapes_strict=0.5)"],
        ),
        ("sample --help", ["usage: dgpo sample RUN|MODEL", "--prompt", "not replaced"]),
        ("report --help", ["usage: dgpo report RUN"]),
        ("compare --help", ["usage: dgpo compare RUN RUN [RUN ...] [--out FILE]", "compare.html"]),
        (
            "train --help",
            [
                *("usage: dgpo train", "shapes_all", "--resume RUN", "--group-size INT", "algorithm options"),
                *("optimizer options", "[NAME[=FLOAT] ...]", "--algorithm.beta"),
            ],
        ),
        ("train shapes_all --help", ["(default: shapes_all)"]),
    ],
)
def test_help(
    words: str, parts: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dgpo.models.load_model", None)
    assert main(words.split()) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert [part for part in parts if part not in out] == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--offline groups --prompts mine.txt", "--prompts would change nothing: offline='groups' brings its own"),
        ("--offline groups --group-size=4", "--group-size would change nothing"),
        ("--finetune full --lora.rank 8 --lora.alpha=8", "--lora.rank, --lora.alpha would change nothing"),
        ("--sampling.negative-prompt x --algorithm.ref-guidance-scale 1", "'x' would change nothing: no guidance"),
        ("--human.ahead 3", "--human.ahead would change nothing: nobody is asked, as the rewards are shapes"),
    ],
)
def test_a_field_that_another_one_leaves_unread_is_refused(
    words: str, message: str, trained: list[tuple[Config, bool]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *words.split()]) == 2
    assert message in capsys.readouterr().err
    assert not trained


@pytest.mark.parametrize(
    "words",
    [
        "--finetune full",
        "--offline groups",
        "--rewards human --human.ahead 3 --redraw-groups 0",
        "--eval-every 0 --eval-rewards x",
    ],
)
def test_what_a_recipe_has_of_unread_fields_may_stand(words: str, trained: list[tuple[Config, bool]]) -> None:
    assert main(["train", "tiny", *words.split()]) == 0
    assert len(trained) == 1


@pytest.mark.parametrize("command", ["eval", "collect"])
def test_help_without_a_source_shows_no_recipes_values(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert "shapes_strict" not in capsys.readouterr().out


def run_folder(folder: Path, config: Config, version: str = __version__) -> Path:
    """What `stored_config` looks at."""
    folder.mkdir()
    save_yaml(config, folder / "config.yaml")
    (folder / "environment.json").write_text(f'{{"dgpo": "{version}"}}')
    return folder


def test_resume_takes_the_runs_own_config_in_the_folder_where_it_now_is(
    trained: list[tuple[Config, bool]], tmp_path: Path
) -> None:
    run = run_folder(tmp_path / "moved", Config(out="elsewhere", seed=4))
    assert main(["train", "--resume", str(run), "--iterations", "300"]) == 0
    assert main(["train", f"--resume={run}"]) == 0
    assert trained == [
        (Config(out=str(run), seed=4, iterations=300), True),
        (Config(out=str(run), seed=4), True),
    ]


@pytest.mark.parametrize(
    ("version", "words", "message"),
    [
        ("0.0.7", "", "was written by dgpo 0.0.7"),
        (__version__, "--out elsewhere", "--out elsewhere cannot be given with it"),
        (__version__, "--sed 3", "Did you mean 'seed'?"),
    ],
)
def test_resume_refuses(
    version: str, words: str, message: str, trained: list, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_folder(tmp_path / "run", Config(), version)
    assert main(["train", "--resume", str(run), *words.split()]) == 2
    assert message in capsys.readouterr().err
    assert not trained
    assert load_yaml(run / "config.yaml") == Config()


def test_resume_of_another_versions_folder_speaks_of_the_version_not_of_its_fields(
    trained: list, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_folder(tmp_path / "run", Config(), "9.0.0")
    (run / "config.yaml").write_text("a_field_of_the_future: 1\n")
    assert main(["train", "--resume", str(run)]) == 2
    assert "was written by dgpo 9.0.0" in capsys.readouterr().err


def test_a_reader_that_leaves_early_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Closed(io.TextIOWrapper):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Closed(io.BufferedWriter(io.FileIO(tmp_path / "out", "w"))))
    assert main(["--help"]) == 0


def test_the_benchmark_says_which_run_does_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--only", "dpgo"]) == 2
    assert "Did you mean 'dgpo'" in capsys.readouterr().err


def test_a_lora_to_continue_brings_its_own_rank_where_a_recipe_has_one(trained: list[tuple[Config, bool]]) -> None:
    for words in (["--lora.start", "x/y"], ["tiny", "--lora.start=x/y"], ["--recipe", "tiny", "--lora.start", "x/y"]):
        assert main(["train", *words]) == 0
        lora = trained.pop()[0].lora
        assert (lora.start, lora.rank, lora.alpha, lora.target_modules) == ("x/y", None, None, None)
    assert main(["train", "--lora.start", "x/y", "--lora.alpha", "8", "--lora.rank", "2"]) == 0
    lora = trained.pop()[0].lora
    assert (lora.rank, lora.alpha) == (2, 8)
    assert main(["train"]) == 0
    assert trained.pop()[0].lora == recipe("tiny").lora


def test_what_a_config_file_says_of_a_lora_is_given(trained: list[tuple[Config, bool]], tmp_path: Path) -> None:
    save_yaml(recipe("tiny"), tmp_path / "own.yaml")
    assert main(["train", str(tmp_path / "own.yaml"), "--lora.start", "x/y"]) == 0
    assert (trained[0][0].lora.rank, trained[0][0].lora.alpha) == (32, 64)


def test_a_lora_is_mended_by_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"transformer.r": 2, "transformer.lora_alpha": 4, "transformer.target_modules": ["to_q"]}
    tensors = {"transformer.to_q.lora_A.weight": torch.ones(2, 3), "transformer.to_q.lora_B.weight": torch.ones(3, 2)}
    save_file(tensors, tmp_path / "old.safetensors", {"lora_adapter_metadata": json.dumps(settings)})
    command = ["lora", "fix", str(tmp_path / "old.safetensors"), str(tmp_path / "new")]
    assert main(command) == 0
    (file,) = capsys.readouterr().out.split()
    assert torch.equal(load_file(file)["transformer.to_q.lora_B.weight"], torch.full((3, 2), 2.0))
    assert main(command) == 2
    assert "exists already and is not replaced" in capsys.readouterr().err
    for words, message in (
        (["lora"], "usage: dgpo lora fix FILE OUT"),
        (["lora", "fix", "--help"], "usage: dgpo lora fix FILE OUT"),
        (["lora", "mend", "a", "b"], "there is no command 'lora mend'"),
        (["lora", "fix", "a"], "takes a file and a new folder"),
    ):
        main(words)
        said = capsys.readouterr()
        assert message in said.out + said.err
