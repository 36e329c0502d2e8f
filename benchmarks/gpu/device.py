"""Say what the device is and can do, and read its clock and its memory. Without a GPU it is the CPU."""

from __future__ import annotations

import re
import resource
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

# Dense operations a second with 16-bit inputs, from the makers' data sheets, by words of the device's name; the first that fits.
# T4's are of float16.
PEAKS: tuple[tuple[tuple[str, ...], float], ...] = (
    (("H100", "PCIE"), 756e12),
    (("H100", "NVL"), 835e12),
    (("H100",), 989e12),
    (("H200",), 989e12),
    (("A100",), 312e12),
    (("L40S",), 362e12),
    (("L4",), 121e12),
    (("A10",), 125e12),
    (("T4",), 65e12),
)


def has_gpu() -> bool:
    return torch.cuda.is_available()


def device() -> torch.device:
    return torch.device("cuda" if has_gpu() else "cpu")


def half() -> torch.dtype | None:
    """Return the 16-bit type that the device multiplies fast: bfloat16 from Ampere on, float16 before; None for a CPU."""
    if not has_gpu():
        return None
    return torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16


def peak_flops(name: str) -> float | None:
    """Return the operations a second of a device at best; None where that is unknown, as for a part of a GPU (MIG)."""
    words = set(re.split(r"[^A-Z0-9]+", name.upper()))
    return None if "MIG" in words else next((peak for needed, peak in PEAKS if words.issuperset(needed)), None)


def describe() -> dict[str, Any]:
    """Return the device's name, memory and software."""
    if not has_gpu():
        return {"device": "cpu", "threads": torch.get_num_threads(), "torch": torch.__version__}
    found = torch.cuda.get_device_properties(0)
    return {
        "device": found.name,
        "GiB": found.total_memory / 2**30,
        "capability": f"{found.major}.{found.minor}",
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "peak TFLOP/s": (peak_flops(found.name) or 0) / 1e12 or "unknown",
    }


class Device:
    """Serve `describe` in a process of its own, since it takes a part of the device's memory."""

    def describe(self) -> dict[str, Any]:
        return describe()


def now() -> float:
    """Return the time in seconds at which the device has done all its work."""
    if has_gpu():
        torch.cuda.synchronize()
    return time.perf_counter()


def reset_peak() -> None:
    """Forget the peak memory so far. On a CPU only Linux can; elsewhere the peak is that since the process began."""
    if has_gpu():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Return the peak of the memory that tensors took on the GPU, or of the process's resident memory on a CPU."""
    if has_gpu():
        return torch.cuda.max_memory_allocated()
    with suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
