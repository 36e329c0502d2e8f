"""Apply training policies: which parameters of a part are trained and saved, and in which mode its modules run."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmzoo.errors import DoesNotFit
from mmzoo.interfaces import Part, current_pass, running
from mmzoo.interfaces.kinds import key_of


def check_policy(part: Part, policy: str, label: str, key: str) -> None:
    """Check that a part supports a policy. ``label`` and ``key`` (its key in the recipe) name the part in the message.

    Raises:
        DoesNotFit: it has fewer blocks than the policy trains, or no linear layers for adapters.
    """
    kind, _, number = policy.partition(":")
    if kind == "last" and int(number) > len(part.blocks()):
        raise DoesNotFit(f"{key}.train: {policy}: {label} has {len(part.blocks())} blocks; use full, frozen or fewer")
    if kind == "lora" and not _lora_targets(part):
        raise DoesNotFit(f"{key}.train: {policy}: {label} has no linear layers in blocks to adapt; use full or last:N")


def apply_policy(part: Part, policy: str) -> None:
    """Set ``requires_grad`` on every parameter; ``lora:r`` adds adapters (Hu et al. 2021, alpha = 2r) through peft."""
    kind, _, number = policy.partition(":")
    part.requires_grad_(kind == "full")
    if kind == "last":
        for block in list(part.blocks())[-int(number) :]:
            block.requires_grad_(True)
    elif kind == "lora":
        from peft import LoraConfig, inject_adapter_in_model

        rank, targets = int(number), _lora_targets(part)
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=targets), part)


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


def _lora_targets(part: Part) -> list[str]:
    """Return the names of the linear layers in a part's blocks."""
    from transformers.pytorch_utils import Conv1D

    names = {module: name for name, module in part.named_modules()}
    return [
        names[module]
        for block in part.blocks()
        for module in block.modules()
        # nn.MultiheadAttention reads its out_proj's weight directly, so an adapter there would do nothing
        if isinstance(module, nn.Linear | Conv1D) and not isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)
    ]
