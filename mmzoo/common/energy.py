"""Measure the energy that GPUs use, with NVML through the package ``nvidia-ml-py`` (``pip install "mmzoo[energy]"``).

NVML counts millijoules since the driver was loaded (``nvmlDeviceGetTotalEnergyConsumption``, for Volta and later):
https://docs.nvidia.com/deploy/nvml-api/
"""

from __future__ import annotations

import os
import platform
from typing import Any

JOULES_PER_KWH = 3.6e6


class Meter:
    """Measure the energy that a ``with`` block uses on ``device``.

    ``energy`` is then the kWh and what they were measured on, or None if nothing could be read. Nothing is estimated.
    """

    def __init__(self, device: str) -> None:
        self.energy: dict[str, Any] | None = None
        self._counters = gpu_counters() if device.startswith("cuda") else []

    def __enter__(self) -> Meter:
        self._start = sum(read() for read in self._counters)
        return self

    def __exit__(self, *_: object) -> None:
        if count := len(self._counters):
            joules = sum(read() for read in self._counters) - self._start
            self.energy = {"kwh": joules / JOULES_PER_KWH, "measured": [f"{count} GPU{'s' if count > 1 else ''} (NVML)"]}


def gpu_counters() -> list[Any]:
    """Return a function for each GPU in use that reads its counter in joules; none where NVML cannot be used.

    These are the current GPU, or all visible GPUs if this is one of several processes.
    """
    import torch

    try:
        import pynvml  # type: ignore[import-not-found, import-untyped, unused-ignore]

        pynvml.nvmlInit()
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        counters = []
        for index in range(torch.cuda.device_count()) if several else [torch.cuda.current_device()]:
            handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(index).uuid}")
            counters.append(lambda handle=handle: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3)
            counters[-1]()  # fails here where the GPU has no counter
        return counters
    except Exception:  # no package, no driver, an older GPU, a part of a GPU (MIG)
        return []


def hardware(device: str) -> str:
    """Return the name of the GPU that ``device`` names, or the machine's architecture."""
    import torch

    return torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.machine()
