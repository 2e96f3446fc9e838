"""The page that `dgpo plan` prints, its checks and its exit code."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from medium import short  # pyright: ignore[reportMissingImports] (beside this file)

import dgpo.plan.checks as checks_module
from dgpo.commands.main import main
from dgpo.config import Config, LoraConfig, Sampling, save_yaml
from dgpo.errors import UserError
from dgpo.plan import plan
from dgpo.plan.checks import Check, run_checks
from dgpo.plan.estimates import Estimate, Part
from dgpo.plan.fitting import GIB, advice, needs
from dgpo.plan.gpus import GPU, find_gpu
from dgpo.plan.page import lines
from dgpo.plan.speed import Work
from dgpo.training.geometry import geometry


@pytest.mark.slow
def test_the_command_prints_all_sections_and_loads_no_weights(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dgpo.models.load_model", None)
    monkeypatch.setattr("safetensors.torch.load_file", None)
    config = short(tiny_folder, tmp_path / "run", rewards={"crispness": 1.0})
    save_yaml(config, tmp_path / "my_run.yaml")
    assert main(["plan", "my_run.yaml", "--gpu", "h100", "--processes", "2", "--dtype", "bf16"]) == 0
    out = capsys.readouterr().out
    for part in (
        "2 groups of 3 = 6 images on 2 processes, 3 images each, 84 network forwards",
        "1 optimizer step(s), each of 2 points x 1 micro-batch(es) of up to 3 images",
        "SD3Transformer2DModel",
        "optimizer moments",
        "the peak",
        "time of an iteration on H100, estimated",
        "at 40% of 989 TFLOP/s for bf16 and 494 for fp32 (TF32), and 80% of 3,350 GB/s",
        "  ok       memory: 1.0 of H100's 80.0 GiB",
    ):
        assert part in out
    assert "problem" not in out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--gpu H10", "Did you mean 'H100'?"),
        ("--gpu", "--gpu needs the name of one"),
        ("--processes many", "--processes many must be a number"),
        ("--processes 0", "--processes 0 would train nothing"),
        ("nothing", "there is no recipe 'nothing'"),
        ("--sed 3", "Did you mean 'seed'?"),
    ],
)
def test_mistakes_are_one_message(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *words.split()]) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert not out


def known(config: Config, peak: int = GIB, **fields: Any) -> Estimate:
    """An estimate as if made, on a GPU."""
    settings: dict[str, Any] = {"phases": {"updating": peak}, "trained": 1000, "sets": 2, **fields}
    return Estimate(config, geometry(config, 1), on_cpu=False, prompt="a cat", **settings)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"model": "owner/name"}, "model: owner/name is no folder here and not in the local cache"),
        ({"model": "runs/typo"}, "model: there is no folder 'runs/typo'"),
        ({"prompts": "none.txt"}, "prompts: cannot read the prompt file 'none.txt'"),
        ({"prompts": "hf:some/prompts"}, "prompts: hf:some/prompts can be on the hub"),
        ({"eval_every": 1, "eval_prompts": {"seen": "gone.jsonl"}}, "prompts: cannot read the prompt file"),
        ({"rewards": {"shapess": 1.0}}, "rewards: unknown reward 'shapess'. Did you mean 'shapes'?"),
        ({"rewards": {"shapes": 1.0}}, "rewards: the reward shapes reads include from every prompt's metadata"),
        ({"sampling": Sampling(resolution=32)}, "rewards: sampling.resolution=32, and the reward 'crispness' reads"),
        ({"trackers": ("tensorbord",)}, "trackers: unknown tracker 'tensorbord'"),
        ({"num_groups": 1, "group_size": 2}, "processes: num_groups * group_size = 2 images cannot occupy 3 processes"),
        ({"drop_equal_groups": True, "redraw_groups": 1, "group_size": 2}, "processes: redraw_groups=1 may draw one"),
        ({"offline": "no/dataset"}, "prompts: "),
        (
            {"lora": LoraConfig(start="runs/style/gone.safetensors")},
            "lora.start: there is no file or folder 'runs/style/gone",
        ),
        ({"lora": LoraConfig(start="runs")}, "lora.start: the folder 'runs' holds no safetensors file"),
        ({"lora": LoraConfig(start="owner/style")}, "lora.start: 'owner/style' is not here"),
    ],
)
def test_each_problem_is_one_line(
    changes: dict[str, Any], problem: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "runs").mkdir()
    config = replace(short(tiny_folder, tmp_path / "out", rewards={"crispness": 1.0}), **changes)
    found = known(config)
    found.geometry = geometry(config, 3)
    bad = [check.text for check in run_checks(found, find_gpu("L4"), online=False) if not check.ok]
    assert len(bad) == 1
    assert bad[0].startswith(problem)


def test_the_lora_to_continue_from_is_looked_for(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "style.safetensors").touch()
    for start in (tmp_path, tmp_path / "style.safetensors"):
        lora = LoraConfig(start=str(start))
        config = short(tiny_folder, tmp_path / "out", rewards={"crispness": 1.0}, lora=lora)
        found = {check.text: check.ok for check in run_checks(known(config), find_gpu("L4"), online=False)}
        assert found[f"lora.start: {start} is here"]


def test_a_full_disk_and_a_missing_package_are_problems(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = short(tiny_folder, tmp_path / "out", rewards={"crispness": 1.0}, checkpoint_every=1)
    config = replace(config, optimizer=replace(config.optimizer, name="adamw8bit"))
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=79_999))
    monkeypatch.setattr(checks_module.importlib.util, "find_spec", lambda name: None)
    bad = {check.text.split(":")[0] for check in run_checks(known(config), find_gpu("L4"), False) if not check.ok}
    assert bad == {"disk", "optimizer"}
    monkeypatch.setattr(
        "shutil.disk_usage", lambda place: SimpleNamespace(free=80_000)
    )  # 4000 bytes x (4 sets + LoRA) x 4
    assert [check.ok for check in run_checks(known(config), find_gpu("L4"), False)].count(False) == 1


def test_a_folder_without_weights_is_a_problem_and_a_cached_id_without_them_is_not(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = shutil.copytree(tiny_folder, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    config = short(bare, tmp_path / "out", rewards={"crispness": 1.0})
    first = run_checks(known(config), find_gpu("L4"), False)[0]
    assert (first.ok, "has no safetensors file of text_encoder, " in first.text) == (False, True)
    monkeypatch.setattr(checks_module, "locate", lambda model: "owner/name")
    first = run_checks(known(config), find_gpu("L4"), False)[0]
    assert (first.ok, "but for the weights of text_encoder, " in first.text) == (True, True)


def test_the_hub_is_asked_only_when_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Hub:
        def model_info(self, name: str, timeout: float) -> SimpleNamespace:
            asked.append(name)
            return SimpleNamespace(gated="auto")

        def auth_check(self, name: str) -> None:
            if name == "owner/closed":
                raise OSError("401: gated\nmore")

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    found = known(short(Path("owner/name"), tmp_path))
    assert not run_checks(found, None, online=False)[0].ok
    assert not asked
    assert run_checks(found, None, online=True)[0] == Check(
        True, "model: owner/name is on the hub, gated, and open to you"
    )
    closed = run_checks(known(short(Path("owner/closed"), tmp_path)), None, online=True)[0]
    assert (closed.ok, "cannot be had: 401: gated. If it is gated, accept" in closed.text) == (False, True)


def test_what_does_not_fit_is_told_what_would(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A model of memory in which bf16 halves, checkpointing saves 30 GiB and slicing nothing."""

    def peak(config: Config) -> int:
        activations = 10 if config.gradient_checkpointing else 40
        return (activations + 4 * (config.micro_batch_size or 16)) * GIB // (2 if config.dtype == "bf16" else 1)

    def guessed(config: Config, *_: object) -> Estimate:
        return known(config, peak(config))

    monkeypatch.setattr("dgpo.plan.fitting.estimate", guessed)
    found = guessed(short(Path("tiny-sd3"), tmp_path))
    assert needs(found) == int(104 * GIB * 1.05) + GIB
    assert advice(found, 60 * GIB) == "It fits (55.6 GiB) with --dtype bf16"
    assert advice(found, 12 * GIB) == (
        "It fits (8.3 GiB) with --dtype bf16 --gradient-checkpointing --micro-batch-size 1"
    )
    assert advice(found, 2 * GIB).startswith("Even with --dtype bf16 --gradient-checkpointing --micro-batch-size 1 it")
    memory = run_checks(found, GPU("toy", 60, 1, 1, 1), False)[-1]
    assert memory == Check(
        False, "memory: 110.2 GiB do not fit into toy's 60.0 GiB. It fits (55.6 GiB) with --dtype bf16"
    )


def test_the_page_says_what_is_not_known_and_adds_up_time(tmp_path: Path) -> None:
    config = short(Path("tiny-sd3"), tmp_path, iterations=3600, dtype="fp32")
    unknown = "\n".join(lines(known(config, phases={}, unknown="no files"), [Check(False, "sizes: no files")], None))
    assert "could not be estimated" in unknown
    assert "  problem  sizes: no files" in unknown
    gpu = GPU("toy", 1, bf16=1, tf32=1, bandwidth=1)
    work = {"sampling": Work(8e11, 8e8), "decoding": Work(4e11, 24e8)}  # 2 s by arithmetic, 3 s by memory
    page = "\n".join(lines(known(config, work=work, parts=[Part("vae", "AutoencoderTiny", 12)]), [], gpu))
    assert "in all" in page
    assert " 5.00 s  at 40% of 1 TFLOP/s for bf16" in page
    assert " 5.00 h" in page


def test_prompts_that_cannot_be_read_leave_the_rest_of_the_plan(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = short(tiny_folder, tmp_path / "out", rewards={"crispness": 1.0}, prompts="none.txt")
    texts: list[str] = []

    def noted(config: Config, processes: int, on_cpu: bool, prompt: str) -> Estimate:
        texts.append(prompt)
        return known(config)

    monkeypatch.setattr("dgpo.plan.estimate", noted)
    assert not plan(config, gpu="L4")
    assert "problem  prompts: cannot read the prompt file 'none.txt'" in capsys.readouterr().out
    assert plan(replace(config, prompts=("a cat", "two cats")), gpu="L4")
    assert len(texts[0].split()) > 70
    assert texts[1] == "two cats"
    with pytest.raises(UserError, match="would train nothing"):
        plan(config, processes=0)


def test_without_a_gpu_the_page_says_what_time_takes(tmp_path: Path) -> None:
    work = {"sampling": Work(1e12, 1e9)}
    config = Config(model="m", prompts=("a",), rewards={"brightness": 1.0}, out=str(tmp_path))
    for on_cpu, where in ((True, "the CPU"), (False, "this GPU")):
        estimated = replace(known(config, work=work), on_cpu=on_cpu)
        page = list(lines(estimated, [], None))
        (said,) = (line for line in page if line.startswith("time"))
        assert said.startswith(f"time: not foretold for {where}; --gpu NAME estimates it for one of RTX 3090, ")
    assert not any("not foretold" in line for line in lines(known(config, work=work), [], find_gpu("H100")))


def test_what_a_micro_batch_smaller_than_a_group_costs_is_told(tmp_path: Path) -> None:
    """Of 3 at two points: rollouts take 4 forwards an image, an update 5 a point, and 6 with the totals' pass."""

    def told(micro_batch_size: int | None) -> list[str]:
        estimated = known(short(tmp_path, tmp_path, micro_batch_size=micro_batch_size))
        return [line for line in lines(estimated, [], None) if "spread over micro-batches" in line]

    (line,) = told(2)
    assert "a group of 3 is spread" in line
    assert "micro_batch_size=3, or a multiple of it, would save 12% of all forwards" in line  # 2 of 4 + 2 * 6
    assert told(3) == told(6) == told(None) == []


def test_more_groups_than_prompts_are_said_to_repeat_them(tiny_folder: Path, tmp_path: Path) -> None:
    config = short(tiny_folder, tmp_path / "out", rewards={"crispness": 1.0}, prompts=("a cat", "a dog"), num_groups=3)
    (line,) = (c for c in run_checks(known(config), find_gpu("L4"), online=False) if c.text.startswith("prompts"))
    assert line.ok
    assert "num_groups=3 is more than the 2 prompts: they repeat within an iteration" in line.text
