"""Models of the transformers library, for plugins whose parts are made of one: from plain data, or from a
`mmzoo.backbones.repository.Source` with its weights. Only safetensors is read, and what a stranger's configuration could make the library fetch
or run is refused."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, initialization

from mmzoo.backbones.repository import Source, explain_errors
from mmzoo.checkpoints import screening
from mmzoo.errors import BadRecipe, SourceError


def config_of(data: dict[str, Any]) -> PreTrainedConfig:
    """A configuration from plain data with a ``model_type``.

    Raises:
        BadRecipe: no such type, or a value that the type does not take.
    """
    _check_config(data)
    kind = str(data.get("model_type"))
    if kind not in transformers.CONFIG_MAPPING or kind == "mmzoo":
        raise BadRecipe(f"config.model_type: transformers {transformers.__version__} has no '{kind}'")
    # Quiet, since it warns of its own default ids where the vocabulary is small.
    with explain_errors(f"config: {kind} does not take it", BadRecipe), quiet():
        return AutoConfig.for_model(**copy.deepcopy(data))


# What makes the library fetch or run something, however the rest of the configuration looks.
REACHING = frozenset(
    {
        "auto_map",
        "trust_remote_code",
        "custom_pipelines",
        "attn_implementation",
        "_attn_implementation",
        "experts_implementation",
        "_experts_implementation",
        "quantization_config",
        *screening.FETCHED,
    }
)


def _check_config(data: dict[str, Any]) -> None:
    """A recipe, with a configuration in it, may be a stranger's.

    Raises:
        BadRecipe: it names what would be fetched or run, or more layers than any model has.
    """
    try:
        screening.check_sizes(data)
    except ValueError as error:
        raise BadRecipe(f"config.{error}") from None
    for key, value in screening.walk(data):
        if key in REACHING and value:
            raise BadRecipe(f"config.{key}: is not allowed in a recipe, since the library would fetch or run what it names")


def class_for(config: PreTrainedConfig, mapping: Any) -> type[PreTrainedModel] | None:
    """The model class that an auto class's ``mapping`` has for ``config``; None if it has none."""
    if type(config) not in mapping:
        return None
    found = mapping[type(config)]
    if not isinstance(found, list | tuple):
        return found
    by_name = {cls.__name__: cls for cls in found}
    return next((by_name[name] for name in config.architectures or () if name in by_name), found[0])


def on_meta() -> bool:
    """Whether new tensors go to the meta device."""
    return torch.get_default_device().type == "meta"


def construct_model(cls: type[PreTrainedModel], config: PreTrainedConfig, **options: Any) -> PreTrainedModel:
    """A float32 model with random weights on the current device; on the meta device nothing is initialised."""
    with initialization.meta_device_safe_creation_ops() if on_meta() else nullcontext():
        return cls._from_config(copy.deepcopy(config), dtype=torch.float32, **options)


def load_backbone(
    cls: type[PreTrainedModel], config: PreTrainedConfig, source: Source, *, within: str = "", **options: Any
) -> PreTrainedModel:
    """A float32 model on the CPU with the weights of ``source``; those below ``within``, as ``encoder.``, where ``cls`` is a part
    of the model that the source holds.

    Raises:
        SourceError: weights cannot be fetched or read, or lack some of the model's.
    """
    state: dict[str, torch.Tensor] = {}
    model: PreTrainedModel
    info: dict[str, Any]
    with explain_errors(f"'{source.name}': the weights cannot be loaded into {cls.__name__}"):
        for path in source.weights(cls.__name__):
            # load_file maps the file, which costs no time and no memory but for what is used. A folder's files are copied:
            # whoever wrote to one later would write into the model. The Hub's lie in a cache that is only added to. What
            # is not float32 is converted, so copied, below.
            mapped = load_file(path)
            if source.folder is not None:
                converted = {name for name, v in mapped.items() if v.is_floating_point() and v.dtype != torch.float32}
                mapped = {name: value if name in converted else value.clone() for name, value in mapped.items()}
            state.update(_below(within, mapped))
        with quiet():
            # Without a name transformers reads nothing by itself: no adapter, no pickle, no request to the Hub.
            model, info = cls.from_pretrained(  # type: ignore[misc]
                None,
                config=copy.deepcopy(config),
                state_dict=state,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are told of below, by name
                **options,
            )
    missing = sorted({*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])})
    missing += sorted(name for name, p in model.named_parameters() if p.is_meta and name not in missing)
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise SourceError(
            f"'{source.name}' lacks {len(missing)} weights of {cls.__name__}, or has them in other shapes: {shown}.\n"
            "It is a checkpoint of another kind; choose one that was made for this"
        )
    return model


def _below(within: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors whose name begins with ``within``, or has it as a later part, without what stands up to it."""
    if not within:
        return state
    found = {f".{name}".partition(f".{within}")[::2]: value for name, value in state.items()}
    return {rest: value for (_, rest), value in found.items() if rest}


@contextmanager
def quiet() -> Iterator[None]:
    """No loading report and no progress bar: what matters of them is raised."""
    logging_ = transformers.utils.logging
    verbosity, bars = logging_.get_verbosity(), logging_.is_progress_bar_enabled()
    logging_.set_verbosity_error()
    logging_.disable_progress_bar()
    try:
        yield
    finally:
        logging_.set_verbosity(verbosity)
        if bars:
            logging_.enable_progress_bar()
