"""Build models of the transformers library for plugins.

A model is built from a configuration as plain data, or from a `mmzoo.backbones.repository.Source` with its weights. Weights are
read from safetensors only, and a configuration that would make the library fetch or run something is refused.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any, Protocol

import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, initialization

from mmzoo.backbones.repository import Source
from mmzoo.backbones.weights import explain_errors, first_names, quiet
from mmzoo.checkpoints import screening
from mmzoo.errors import BadRecipe, SourceError


def config_of(data: dict[str, Any]) -> PreTrainedConfig:
    """Return a configuration from plain data with a ``model_type``.

    Raises:
        BadRecipe: transformers has no such type, the type does not accept a value, or a value would make the library fetch or run
            something.
    """
    try:
        screening.check_sizes(data)
    except ValueError as error:
        raise BadRecipe(f"config.{error}") from None
    for key, value in screening.walk(data):
        if key in screening.REACHING and value:
            raise BadRecipe(f"config.{key}: is not allowed in a recipe, since the library would fetch or run what it names")
    kind = str(data.get("model_type"))
    if kind not in transformers.CONFIG_MAPPING or kind == "mmzoo":
        raise BadRecipe(f"config.model_type: transformers {transformers.__version__} has no '{kind}'")
    # Quiet, since it warns that its own default ids exceed a small vocabulary.
    with explain_errors(f"config: {kind} does not accept it", BadRecipe), quiet():
        return AutoConfig.for_model(**copy.deepcopy(data))


def class_for(config: PreTrainedConfig, mapping: Any) -> type[PreTrainedModel] | None:
    """Return the model class for a configuration in the ``mapping`` of an auto class; None if there is none."""
    if type(config) not in mapping:
        return None
    classes = mapping[type(config)]
    if isinstance(classes, type):
        return classes
    by_name = {cls.__name__: cls for cls in classes}
    return next((by_name[name] for name in config.architectures or () if name in by_name), classes[0])


def on_meta() -> bool:
    """Return whether new tensors are created on the meta device."""
    return torch.get_default_device().type == "meta"


def construct_model(cls: type[PreTrainedModel], config: PreTrainedConfig, **options: Any) -> PreTrainedModel:
    """Return a float32 model with random weights on the current device; on the meta device nothing is initialised.

    ``config`` is copied; ``options`` are further arguments of the class, such as ``add_pooling_layer``.
    """
    config = copy.deepcopy(config)
    for part in (config, *(getattr(config, name, None) for name in config.sub_configs)):
        if part is not None:
            part.dtype = torch.float32
    with initialization.meta_device_safe_creation_ops() if on_meta() else nullcontext():
        return cls(config, **options).float()


class WholeModel(Protocol):
    """Take the weights of one part out of a whole model's checkpoint."""

    def read(self, source: Source) -> dict[str, torch.Tensor]:
        """Return the part's tensors by their names in the part."""


def load_backbone(
    cls: type[PreTrainedModel], config: PreTrainedConfig, source: Source, *, within: str | WholeModel = "", **options: Any
) -> PreTrainedModel:
    """Return a float32 model on the CPU with the weights of a source.

    Args:
        cls, config, options: as for `construct_model`.
        source: the repository or folder with the weights.
        within: where the weights are if ``cls`` is a part of the model in the source: the prefix of their names, such as
            ``encoder.``, or a `WholeModel` that reads them.

    Raises:
        SourceError: the weights cannot be fetched or read, or some are missing or have another shape.
    """
    model: PreTrainedModel
    info: dict[str, Any]
    with explain_errors(f"'{source.name}': the weights cannot be loaded into {cls.__name__}"):
        if isinstance(within, str):
            # load_file maps the file, so that only weights that are used take time and memory.
            mapped = [load_file(path) for path in source.weights(cls.__name__)]
            state = _below(within, {name: value for part in mapped for name, value in part.items()})
        else:
            state = within.read(source)
        with quiet():
            # Without a name transformers reads nothing by itself: no adapter, no pickle, no request to the Hub.
            model, info = cls.from_pretrained(  # type: ignore[misc]
                None,
                config=copy.deepcopy(config),
                state_dict=state,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported by name below
                **options,
            )
    missing = sorted({*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])})
    missing += sorted(name for name, p in model.named_parameters() if p.is_meta and name not in missing)
    if missing:
        raise SourceError(
            f"'{source.name}' lacks {len(missing)} weights of {cls.__name__}, or has them in other shapes: "
            f"{first_names(missing)}.\nThe checkpoint is for another architecture; choose one for {cls.__name__}"
        )
    if source.folder is not None:
        _copy_mapped(model, state)
    return model


def _copy_mapped(model: PreTrainedModel, state: dict[str, torch.Tensor]) -> None:
    """Copy the tensors that are still mapped from files.

    A later write to a file in a folder would change the model; files in the Hub's cache are never written to. Weights that were
    not float32 were copied when they were converted.
    """
    mapped = {value.data_ptr() for value in state.values()}
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.data_ptr() in mapped:
            tensor.data = tensor.data.clone()


def _below(within: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors whose name has the prefix ``within``, at its start or after a dot, with the name up to there removed."""
    if not within:
        return state
    parted = {f".{name}".partition(f".{within}")[::2]: value for name, value in state.items()}
    return {rest: value for (_, rest), value in parted.items() if rest}
