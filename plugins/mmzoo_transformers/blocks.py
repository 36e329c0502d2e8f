"""Finding a model's repeated blocks, whatever its family calls them."""

from __future__ import annotations

from torch import nn

NAMES = frozenset({"h", "layer", "layers", "block", "blocks", "stage", "stages", "resblocks"})


def find_blocks(model: nn.Module) -> tuple[nn.Module, ...]:
    """The blocks of ``model`` from input to output: the longest list of modules among those least deep inside it that
    bears one of `NAMES`; empty if there is none. A list inside a block is deeper, so it is never taken."""
    lists = [
        (name.count("."), -len(module), name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module) and name.rpartition(".")[2] in NAMES
    ]
    return tuple(min(lists, key=lambda item: item[:3])[3].children()) if lists else ()
