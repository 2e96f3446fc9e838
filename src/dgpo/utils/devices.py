"""Where a run computes and in which precision, when that is left to the machine.

`auto` takes a GPU where there is one, and there bf16 if it computes in it; a CPU, an older GPU and Apple's have fp32.
"""

from __future__ import annotations

import gc
import os
import platform
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Literal

import torch

from dgpo.errors import UserError

Precision = Literal["fp32", "bf16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def device_of(name: str) -> str:
    """`auto` is CUDA where there is one, else Apple's mps, else the CPU."""
    if name != "auto":
        return name
    return "mps" if cuda_or_cpu() == "cpu" and torch.backends.mps.is_available() else cuda_or_cpu()


def cuda_or_cpu() -> str:
    """Where rewards compute unless they are told: CUDA where there is one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def cpu_name() -> str:
    """The processor's model as the system tells it, such as "Intel(R) Xeon(R) Processor @ 2.90GHz"."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def own_threads() -> int:
    """Threads for a library beside torch: torch's number; under torchrun, which gives torch one, its share of cores."""
    processes = os.environ.get("LOCAL_WORLD_SIZE")
    return torch.get_num_threads() if processes is None else max(1, cores() // int(processes))


def precision_of(dtype: str, device: str | torch.device) -> Precision:
    """`auto` is bf16 on a CUDA GPU that has it in hardware, else fp32. dtype: auto, fp32 or bf16."""
    if dtype in ("fp32", "bf16"):
        return dtype
    on_cuda = torch.device(device).type == "cuda"
    return "bf16" if on_cuda and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


def require_precision(name: str, dtype: str, device: torch.device) -> None:
    """Refuse bf16 on a CUDA GPU that only emulates it, several times slower than fp32. name: the setting's."""
    if dtype == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        less = ", and for less memory base_precision='int8' or 'nf4'" if name == "dtype" else ""
        raise UserError(
            f"{name}='bf16': {torch.cuda.get_device_name(device)} has no bf16 in hardware, and emulating it is slower "
            f"than fp32; take {name}='fp32'{less}"
        )


def allow_tf32(device: torch.device) -> None:
    """Let a GPU multiply what is fp32 (trained weights, the VAE) in TF32: 10 bits of mantissa, several times faster.

    NVIDIA_TF32_OVERRIDE=0 in the environment forbids it.
    """
    if device.type == "cuda" and not _tf32_is_forbidden():
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True


def _tf32_is_forbidden() -> bool:
    return os.environ.get("NVIDIA_TF32_OVERRIDE") == "0"


def described(dtype: str, device: torch.device) -> str:
    """What is computed how, for a person: "bf16, TF32 for what stays fp32"."""
    if device.type != "cuda" or _tf32_is_forbidden():
        return dtype
    return "fp32 as TF32" if dtype == "fp32" else f"{dtype}, TF32 for what stays fp32"


def release_unused(device: torch.device) -> None:
    """Give back what nobody holds any more, before something large comes: on a GPU no allocation collects garbage.

    A run that has ended leaves cycles (its optimizer's hooks, the functions of its weight sets) with all its tensors.
    """
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def on_this_device() -> Callable[[], None]:
    """What a new thread calls to have the current GPU of the thread that called this: CUDA keeps one for each."""
    if not torch.cuda.is_available():
        return lambda: None
    current = torch.cuda.current_device()
    return lambda: torch.cuda.set_device(current)


def await_kernels() -> None:
    """Wait until what this thread has queued on a GPU is done, where one is in use."""
    if torch.cuda.is_initialized():
        torch.cuda.current_stream().synchronize()


def on_a_stream_of_its_own(name: str) -> Callable[[], None]:
    """The same, and the thread waits for its own kernels alone, not for those of others that were called before.

    Threads of one name follow each other on one stream: PyTorch keeps the memory that was free on a stream for that
    stream, so that new ones would leave more and more of it unused. What a thread makes on the GPU must be read there
    by nobody else, or after it has waited.
    """
    here = on_this_device()

    def start() -> None:
        here()
        if torch.cuda.is_available():
            torch.cuda.set_stream(_stream(torch.cuda.current_device(), name))

    return start


@cache
def _stream(device: int, name: str) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
