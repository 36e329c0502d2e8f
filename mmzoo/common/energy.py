"""The energy that a stretch of work used, where the machine counts it.

- GPUs: NVML's counter of millijoules since the driver was loaded (``nvmlDeviceGetTotalEnergyConsumption``, Volta and later),
  through the package ``nvidia-ml-py`` if it is installed.
- Processors: RAPL's counters of microjoules (https://www.kernel.org/doc/html/latest/power/powercap/powercap.html), one a package,
  which only root may read on most machines. They count all that runs on the processor, and begin again at a maximum.
"""

from __future__ import annotations

import os
import platform
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")
JOULES = 3.6e6  # a kWh
ASK_EVERY = 60.0  # seconds; a counter of 262 kJ goes round in 10 minutes at 400 W


class Meter:
    """Counts in a ``with`` block that works on ``device``; ``energy`` is then the kWh and what they are of, None if nothing could
    be read. A counter that cannot be read is not guessed."""

    def __init__(self, device: str) -> None:
        self.energy: dict[str, Any] | None = None
        self._gpus = _gpus() if device.startswith("cuda") else {}
        self._last: dict[str, tuple[int, int]] = {}
        self._joules: dict[str, float] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Meter:
        self._gpu = {name: read() for name, read in self._gpus.items()}
        self._last = _rapl()
        if self._last:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        joules, of = 0.0, []
        if self._gpus:
            joules += sum(read() - self._gpu[name] for name, read in self._gpus.items())
            of.append(f"{len(self._gpus)} GPU{'s' if len(self._gpus) > 1 else ''} (NVML)")
        if self._last:
            self._stopped.set()
            self._thread.join()
            self._count()
            joules += sum(self._joules.values())
            of.append("the whole processor (RAPL)")
        if of:
            self.energy = {"kwh": joules / JOULES, "measured": of}

    def _watch(self) -> None:
        while not self._stopped.wait(ASK_EVERY):
            self._count()

    def _count(self) -> None:
        now = _rapl()
        for path, (value, top) in now.items():
            used = value - self._last[path][0] if path in self._last else 0
            self._joules[path] = self._joules.get(path, 0.0) + (used if used >= 0 else used + top) / 1e6
        self._last = {**self._last, **now}


def _rapl() -> dict[str, tuple[int, int]]:
    """Each processor's counter and its maximum, in microjoules."""
    found = {}
    for folder in sorted(POWERCAP.glob("intel-rapl:*")):
        with suppress(OSError, ValueError):
            if folder.name.count(":") == 1 and (folder / "name").read_text().startswith("package"):
                top = int((folder / "max_energy_range_uj").read_text())
                found[folder.name] = (int((folder / "energy_uj").read_text()), top)
    return found


def _gpus() -> dict[str, Any]:
    """For each GPU in use a function that gives its counter, in joules: the current one, or every visible one if this is one of
    several processes."""
    import torch

    try:
        import pynvml  # type: ignore[import-not-found, import-untyped, unused-ignore]

        pynvml.nvmlInit()
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        found = {}
        for index in range(torch.cuda.device_count()) if several else [torch.cuda.current_device()]:
            handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(index).uuid}")
            found[str(index)] = lambda handle=handle: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3
            found[str(index)]()
        return found
    except Exception:  # no package, an older GPU, a slice of one: then it is not known
        return {}


def hardware(device: str) -> str:
    """What ``device`` is, as the GPU or the machine calls itself."""
    import torch

    return torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.machine()
