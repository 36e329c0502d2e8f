"""Shard what is trained over processes: FSDP2, by accelerate.

The blocks of trained parts are units, and the rest of these parts is one more. Parts of which nothing is trained are whole in
each process. Weights and the optimizer's state are saved as those of one process, so that a run may be resumed without shards.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import TrainerCallback

from mmzoo.errors import TrainingError
from mmzoo.interfaces import Part
from mmzoo.interfaces.kinds import key_of


def shard_on_cpu(accelerator: Accelerator) -> bool:
    """Have weights sharded over gloo too where `accelerate launch --use_fsdp` asks for it, and return whether that was done.

    accelerate itself would go on without shards on a CPU.
    """
    state: Any = accelerator.state
    if not parse_flag_from_env("ACCELERATE_USE_FSDP") or state.distributed_type != DistributedType.MULTI_CPU:
        return False
    state.distributed_type, state.fsdp_plugin = DistributedType.FSDP, FullyShardedDataParallelPlugin()
    return True


class Shards(TrainerCallback):
    """Tell accelerate what to shard of a model, and convert weights and the optimizer's state from shards and to shards.

    Raises:
        TrainingError: FSDP 1 is asked for.
    """

    def __init__(self, model: Any, accelerator: Accelerator) -> None:
        plugin: Any = accelerator.state.fsdp_plugin
        if plugin.fsdp_version != 2:
            raise TrainingError(
                "FSDP 1 would shard what is frozen too; use accelerate launch --use_fsdp --fsdp_version 2, or fsdp_version: 2 in "
                "its configuration"
            )
        self.model = model
        self.ran: set[str] = set()
        parts = {key: model.part(key) for key in model.recipe.parts()}
        trained = [part for part in parts.values() if any(p.requires_grad for p in part.parameters())]
        plugin.ignored_modules = [part.to(accelerator.device) for part in parts.values() if part not in trained]
        plugin.auto_wrap_policy = transformer_auto_wrap_policy
        plugin.transformer_cls_names_to_wrap = sorted({name for part in trained for name in _units(part)})
        # Each process has read the weights, and computes as without shards: in float32 or under autocast.
        plugin.cpu_ram_efficient_loading, plugin.mixed_precision_policy = False, MixedPrecisionPolicy()
        self.scalars = {name for name, own in model.named_parameters() if own.requires_grad and not own.ndim}
        for name in self.scalars:  # FSDP refuses them; a vector of one value does the same
            module, _, own = name.rpartition(".")
            parent = model.get_submodule(module)
            setattr(parent, own, nn.Parameter(getattr(parent, own).detach().reshape(1)))
        self.gathered: dict[str, Tensor] = {}
        model.register_forward_hook(self._note_scalars)

    def _note_scalars(self, model: Any, *_: Any) -> None:
        """Note single values that a task changes in its pass, such as a scale with a bound: it has a gathered copy."""
        self.gathered = {name: model.get_parameter(name).detach().clone() for name in self.scalars}

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Allow that a weight has a gradient in one process and none in another."""
        self.model.set_reduce_scatter_unused_params(True)

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Remove the gradients of parts that no process ran in the step (``ran``, of `share_parts`), as they are without shards.
        Zeros let the optimizer apply its momentum and the weight decay. Keep what a pass has changed."""
        for name, own in self.model.named_parameters():
            if name in self.gathered:
                own.data.copy_(_shard(self.gathered[name], own))
            key = name[name.index(".missing.") + 1 :] if ".missing." in name else key_of(name)
            if key.startswith(("encoders.", "tasks.", "missing.")) and key not in self.ran:
                own.grad = None

    def whole(self, name: str, value: Any) -> Any:
        """Return a weight, or a moment of it, as one process has it, on the CPU; all processes must call this."""
        value = value.full_tensor().cpu() if isinstance(value, DTensor) else value
        return value.reshape(()) if name in self.scalars else value

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Load whole weights, which each process has."""
        own = self.model.state_dict()
        self.model.load_state_dict({name: _shard(value, own[name]) for name, value in weights.items()}, strict=False)

    def state_of(self, optimizer: Any) -> dict[str, Any]:
        """Return the state of an optimizer as one process has it; all processes must call this."""
        names, state = self._names(optimizer), optimizer.state_dict()
        moments = {i: {k: self.whole(names[i], v) for k, v in own.items()} for i, own in state["state"].items()}
        return {**state, "state": moments}

    def load_state(self, optimizer: Any, state: Mapping[str, Any]) -> None:
        """Load the state of an optimizer, as one process has it."""
        own = dict(self.model.named_parameters())
        like = [own[name] for name in self._names(optimizer)]
        moments = {i: {k: _shard(v, like[i]) if k != "step" else v for k, v in s.items()} for i, s in state["state"].items()}
        optimizer.load_state_dict({**state, "state": moments})

    def _names(self, optimizer: Any) -> list[str]:
        names = {id(own): name for name, own in self.model.named_parameters()}
        return [names[id(own)] for group in optimizer.param_groups for own in group["params"]]


def _units(part: Part) -> set[str]:
    """Return the names of the classes of a part's blocks. Processes gather a unit when it runs, so that it must run equally often
    in all of them; torch's own containers may be anywhere."""
    if not part.runs_all_blocks or any(_drops_layers(module) for module in part.modules()):
        return set()
    return {type(block).__name__ for block in part.blocks() if not type(block).__module__.startswith("torch.")}


def _drops_layers(module: Any) -> bool:
    """Return whether a module leaves out blocks at random in training, as wav2vec 2.0 and BART may."""
    return any(getattr(own, "layerdrop", 0) for own in (module, getattr(module, "config", None)))


def _shard(value: Any, like: Any) -> Any:
    """Return a whole tensor, sharded as another one is."""
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value.reshape(like.shape).to(like.device), like.device_mesh, like.placements)
