"""Apply training policies: which parameters of a part are trained and saved, and in which mode its modules run."""

from __future__ import annotations

import logging
import threading
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmzoo.errors import DoesNotFit
from mmzoo.interfaces import Part, current_pass, running
from mmzoo.interfaces.kinds import key_of

log = logging.getLogger(__name__)

_EXPERTS = threading.RLock()  # held while experts with adapters run


def check_policy(part: Part, policy: str, label: str, key: str) -> None:
    """Check that a part supports a policy. ``label`` and ``key`` (its key in the recipe) name the part in the message.

    Raises:
        DoesNotFit: it has fewer blocks than the policy trains, or no linear layers for adapters.
    """
    kind, _, number = policy.partition(":")
    if kind == "last" and int(number) > len(part.blocks()):
        raise DoesNotFit(f"{key}.train: {policy}: {label} has {len(part.blocks())} blocks; use full, frozen or fewer")
    if kind == "lora" and not any(_lora_targets(part)):
        raise DoesNotFit(f"{key}.train: {policy}: {label} has no linear layers in blocks to adapt; use full or last:N")


def apply_policy(part: Part, policy: str) -> None:
    """Set ``requires_grad`` on every parameter; ``lora:r`` adds adapters (Hu et al. 2021, alpha = 2r) through peft.

    The experts of a mixture, which are one tensor, have adapters too, each its own; routers have none.
    """
    kind, _, number = policy.partition(":")
    part.requires_grad_(kind == "full")
    if kind == "last":
        for block in list(part.blocks())[-int(number) :]:
            block.requires_grad_(True)
    elif kind == "lora":
        from peft import LoraConfig, inject_adapter_in_model

        rank, (layers, tensors) = int(number), _lora_targets(part)
        options: dict[str, Any] = {"target_modules": layers, "target_parameters": tensors or None}
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, **options), part)
        for module in part.modules():
            if type(module).__name__ == "ParamWrapper":  # it changes its module while it runs
                module.register_forward_pre_hook(_begin_experts)
                module.register_forward_hook(_end_experts, always_call=True)
        if (reached := adapted(part)) and reached.share < 0.5:
            log.warning("%s: %s", type(part).__name__, reached)


def _begin_experts(*_: Any) -> None:
    _EXPERTS.acquire()


def _end_experts(*_: Any) -> None:
    _EXPERTS.release()


@dataclass(frozen=True)
class Adapted:
    """Count the matrices in a part's blocks that have adapters, and the share of the blocks' weights that they hold.

    ``without`` names the others.
    """

    rank: int
    matrices: int
    of: int
    share: float
    without: tuple[str, ...]

    def __str__(self) -> str:
        others = f"; not on: {', '.join(self.without)}" if self.without else ""
        reached = f"{self.matrices} of {self.of} matrices, {int(100 * self.share)}% of the blocks' weights"
        return f"adapters of rank {self.rank} on {reached}{others}"


def adapted(part: Part) -> Adapted | None:
    """Return which matrices of a part have adapters; None if none has."""
    ranks: dict[int, int] = {}  # by the identity of the weight
    modules: list[Any] = list(part.modules())
    for module in modules:
        for rank in getattr(module, "r", {}).values() if hasattr(module, "lora_A") else ():
            weight = module.get_param() if hasattr(module, "get_param") else module.get_base_layer().weight
            ranks[id(weight)] = rank
    weights = {
        name.replace(".base_layer", ""): weight
        for block in part.blocks()
        for name, weight in ((f"{id(block)}.{name}", weight) for name, weight in block.named_parameters())
        if weight.ndim > 1 and ".lora_" not in name and not name.endswith("bias")  # experts have a bias each
    }
    if not ranks or not weights:
        return None
    total = sum(weight.numel() for weight in weights.values())
    reached = {name: weight for name, weight in weights.items() if id(weight) in ranks}
    others = sorted({name.removesuffix(".weight").rpartition(".")[2] for name in weights if name not in reached})
    share = sum(weight.numel() for weight in reached.values()) / total
    return Adapted(next(iter(ranks.values())), len(reached), len(weights), share, tuple(others))


def set_training_mode(part: Part, policy: str, training: bool) -> None:
    """Set training mode on what is trained. What is frozen stays in evaluation mode: no dropout, no updated statistics."""
    kind, _, number = policy.partition(":")
    part.model_trains = training
    part.train(training and kind in ("full", "lora"))
    if training and kind == "last":
        for block in list(part.blocks())[-int(number) :]:
            block.train()


def allow_single_values(model: nn.Module) -> None:
    """Let batch norms in training use their running statistics for a batch that gives them one value a channel.

    One picture with a feature map of 1 x 1, such as an epoch's last, has no variance, and torch refuses it.
    """
    for module in model.modules():
        # A synchronised one sees the values of all processes.
        if isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm) and module.track_running_stats:
            module.__dict__["sees_single_values"] = False
            module.register_forward_pre_hook(_before_norm)
            module.register_forward_hook(_after_norm, always_call=True)


def _before_norm(module: Any, args: tuple[Any, ...]) -> None:
    if module.training and args and args[0].ndim > 1 and args[0].numel() == args[0].shape[1]:
        module.training, module.sees_single_values = False, True


def _after_norm(module: Any, args: tuple[Any, ...], out: Any) -> None:
    if module.sees_single_values:
        module.training, module.sees_single_values = True, False


def recompute_blocks(language_model: Part, on: bool = True) -> None:
    """Make a language model recompute its blocks in the backward pass instead of keeping their activations, or stop it.

    Raises:
        DoesNotFit: its blocks do not support that.
    """
    models: list[Any] = [m for m in language_model.modules() if hasattr(m, "activation_checkpointing_enable")]
    if not models:
        raise DoesNotFit("training.gradient_checkpointing: this language model has no blocks that can be recomputed")
    if not on:
        models[0].activation_checkpointing_disable()
        return
    models[0].activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False, "context_fn": _same_pass})


def _same_pass() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the contexts of a block's first run and of its second, which may be in another thread: hooks read the same."""
    return nullcontext(), running(current_pass())


def train_frozen_blocks(language_model: Part) -> None:
    """Set training mode on frozen blocks, which are recomputed only in that mode, and turn their dropout off."""
    for block in language_model.blocks():
        if not block.training:
            block.training = True
            for name in ("dropout", "activation_dropout"):  # numbers that OPT and BART pass to functional dropout
                if isinstance(getattr(block, name, None), float):
                    setattr(block, name, 0.0)


def unique_state(module: nn.Module) -> dict[str, Tensor]:
    """Return the weights and buffers of a module by name; tied weights once, under their first name."""
    first = {name for name, _ in module.named_parameters()}
    every = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    return {name: value for name, value in module.state_dict().items() if name not in every - first}


def saved_names(model: Any, full: bool) -> list[str]:
    """Return the names of the tensors to save; see `MultimodalModel.saved_names`."""
    parameters = dict(model.named_parameters())

    def is_saved(name: str) -> bool:
        key = key_of(name)
        policy = model.provenance.policies[key]
        trained = parameters[name].requires_grad if name in parameters else policy != "frozen"  # buffers, such as statistics
        learned = name.startswith(f"{key}.missing.")  # which pretrained weights do not have
        return full or not model.provenance.pretrained[key] or policy == "full" or trained or learned

    return [name for name in unique_state(model) if is_saved(name)]


def _lora_targets(part: Part) -> tuple[list[str], list[str]]:
    """Return the names of the linear layers in a part's blocks, and of the tensors [experts, ...] that hold a matrix for each
    expert. Routers are left out: another choice of experts is more than a small change of weights."""
    from transformers.pytorch_utils import Conv1D

    names = {module: name for name, module in part.named_modules()}
    layers, tensors = [], []
    for block in part.blocks():
        without = _in_routers(block)
        for parent in block.modules():
            without |= {child for name, child in parent.named_children() if name in part.uncalled(parent)}
        for module in block.modules():
            if isinstance(module, nn.Linear | Conv1D):
                layers += [] if module in without else [names[module]]
            else:
                tensors += [f"{names[module]}.{name}" for name in _experts(module)]
    return layers, tensors


def _experts(module: nn.Module) -> dict[str, int]:
    """Return the module's own tensors that hold a matrix for each expert, with the number of experts.

    The matrices of recurrent layers, one for each head, stand beside weights of other shapes; experts have their own alone.
    """
    own = dict(module.named_parameters(recurse=False))
    others = any(True for child in module.children() for _ in child.parameters()) or len({p.shape[:1] for p in own.values()}) > 1
    if others or isinstance(module, nn.modules.conv._ConvNd):
        return {}
    return {name: len(p) for name, p in own.items() if p.ndim == 3 and len(p) > 1 and min(p.shape[1:]) > 1}


def _in_routers(block: nn.Module) -> set[nn.Module]:
    """Return the modules that choose the experts, and all in them: they stand beside the experts, and each of their matrices has
    one row for each expert; or one row, for an expert that all share."""
    found: set[nn.Module] = set()
    for parent in block.modules():
        children = dict(parent.named_children())
        counts = {count for child in children.values() for count in _experts(child).values()}
        lists = (nn.ModuleList, nn.ModuleDict)
        counts |= {len(child) for name, child in children.items() if "expert" in name and isinstance(child, lists)}
        for child in children.values() if counts else ():
            matrices = [p for p in child.parameters() if p.ndim > 1]
            if matrices and all(p.ndim == 2 and len(p) in {1, *counts} for p in matrices):
                found.update(child.modules())
    return found
