"""Training policies: which parameters of a part are trained, and in which mode its modules run."""

from __future__ import annotations

from torch import nn

from mmzoo.errors import DoesNotFit
from mmzoo.interfaces.part import Part


def check_policy(part: Part, policy: str, label: str, key: str) -> None:
    """Refuse a policy that the part cannot follow.

    Raises:
        DoesNotFit: more blocks are asked for than there are, or adapters where there are no linear layers.
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

        rank = int(number)
        config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=_lora_targets(part))
        inject_adapter_in_model(config, part)


def set_training_mode(part: Part, policy: str, training: bool) -> None:
    """Train mode for what is trained; the frozen rest stays in eval mode, without dropout or moving statistics."""
    kind, _, number = policy.partition(":")
    part.model_trains = training
    part.train(training and kind in ("full", "lora"))
    if training and kind == "last":
        for block in list(part.blocks())[-int(number) :]:
            block.train()


def _lora_targets(part: Part) -> list[str]:
    from transformers.pytorch_utils import Conv1D

    names = {module: name for name, module in part.named_modules()}
    return [
        names[module]
        for block in part.blocks()
        for module in block.modules()
        # nn.MultiheadAttention reads its out_proj's weight directly, so an adapter there would do nothing
        if isinstance(module, nn.Linear | Conv1D) and not isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)
    ]
