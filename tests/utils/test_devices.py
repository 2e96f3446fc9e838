"""Where a run computes and in which precision, on machines that this one is not."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from dgpo.errors import UserError
from dgpo.utils.devices import (
    allow_tf32,
    described,
    device_of,
    on_a_stream_of_its_own,
    on_this_device,
    own_threads,
    precision_of,
    release_unused,
    require_precision,
)

CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda", 0), torch.device("mps")


def machine(monkeypatch: pytest.MonkeyPatch, cuda: bool = False, mps: bool = False, bf16: bool = True) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16 or including_emulation)


def test_threads_of_other_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun gives every process of torch one thread, and OCR would have no more."""
    monkeypatch.setattr("dgpo.utils.devices.cores", lambda: 16)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert own_threads() == torch.get_num_threads()
    for processes, threads in ((1, 16), (3, 5), (32, 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        assert own_threads() == threads


def test_memory_is_given_back_on_a_gpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: done.append("emptied"))
    monkeypatch.setattr("gc.collect", lambda: done.append("collected"))
    release_unused(CPU)
    assert done == []
    release_unused(CUDA)
    assert done == ["collected", "emptied"], "what is held by cycles is free only after they are collected"


def test_auto_takes_cuda_then_mps_then_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for there, taken in (
        ((True, True), "cuda"),
        ((True, False), "cuda"),
        ((False, True), "mps"),
        ((False,) * 2, "cpu"),
    ):
        machine(monkeypatch, *there)
        assert device_of("auto") == taken
        assert device_of("cuda:1") == "cuda:1"


def test_auto_is_bf16_on_a_gpu_that_computes_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, cuda=True)
    assert [precision_of("auto", device) for device in (CUDA, "cuda:1", CPU, MPS)] == ["bf16", "bf16", "fp32", "fp32"]
    assert precision_of("fp32", CUDA) == "fp32"
    assert precision_of("bf16", CPU) == "bf16"
    machine(monkeypatch, cuda=True, bf16=False)  # it could only emulate it
    assert precision_of("auto", CUDA) == "fp32"


def test_tf32_can_be_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.backends.cuda.matmul.allow_tf32
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    allow_tf32(torch.device("cuda"))
    assert torch.backends.cuda.matmul.allow_tf32 == before
    assert described("fp32", torch.device("cuda")) == "fp32"


def test_tf32_is_for_cuda_alone_and_is_told() -> None:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = False
        for device in (CPU, MPS):
            allow_tf32(device)
            assert not torch.backends.cuda.matmul.allow_tf32
            assert described("fp32", device) == "fp32"
        allow_tf32(CUDA)
        assert torch.backends.cuda.matmul.allow_tf32
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
    assert described("fp32", CUDA) == "fp32 as TF32"
    assert described("bf16", CUDA) == "bf16, TF32 for what stays fp32"


def test_a_thread_gets_the_gpu_of_the_one_that_made_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As CUDA has it: the current device belongs to a thread, and is the first one in a new thread."""
    current: Any = threading.local()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: getattr(current, "index", 0))
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: setattr(current, "index", index))
    torch.cuda.set_device(3)
    start, seen = on_this_device(), []
    thread = threading.Thread(target=lambda: (start(), seen.append(torch.cuda.current_device())))
    thread.start()
    thread.join()
    assert seen == [3]


def test_threads_of_a_name_share_a_stream_on_the_gpu_of_the_one_that_made_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """As CUDA has it: the current stream, too, belongs to a thread. A stream keeps the memory that was free on it."""
    current, made = threading.local(), []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: setattr(current, "index", index))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: made.append((device, len(made))) or made[-1])
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: setattr(current, "stream", stream))
    seen = []
    for name in ("one of these", "other of these", "one of these"):
        start = on_a_stream_of_its_own(name)
        thread = threading.Thread(target=lambda start=start: (start(), seen.append((current.index, current.stream))))
        thread.start()
        thread.join()
    assert seen == [(3, (3, 0)), (3, (3, 1)), (3, (3, 0))]
    assert not hasattr(current, "stream")  # this thread's own


def test_bf16_that_a_gpu_only_emulates_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    gpu = torch.device("cuda")
    with pytest.raises(UserError, match=r"Tesla T4 has no bf16 in hardware.*take dtype='fp32'"):
        require_precision("dtype", "bf16", gpu)
    with pytest.raises(UserError, match=r"^vae_dtype='bf16': Tesla T4 .*; take vae_dtype='fp32'$"):
        require_precision("vae_dtype", "bf16", gpu)
    require_precision("dtype", "auto", gpu)
    require_precision("dtype", "bf16", torch.device("cpu"))
