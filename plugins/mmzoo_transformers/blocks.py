"""Find a model's repeated blocks, whatever its family calls them."""

from __future__ import annotations

from torch import nn

NAMES = frozenset({"h", "layer", "layers", "block", "blocks", "stage", "stages", "resblocks"})


def uncalled(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the layers of a Mamba mixer whose weights its code or only its kernels read."""
    return ("x_proj", "dt_proj", "out_proj") if hasattr(module, "A_log") and hasattr(module, "in_proj") else ()


def find_blocks(model: nn.Module) -> tuple[nn.Module, ...]:
    """Return the blocks of ``model`` from input to output; empty if there are none.

    They are the longest of those lists of modules that have one of `NAMES` and are least deep inside the model. A list inside a
    block is deeper, so it is never taken.
    """
    lists = [
        (name.count("."), -len(module), name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module) and name.rpartition(".")[2] in NAMES
    ]
    return tuple(min(lists, key=lambda item: item[:3])[3].children()) if lists else ()
