"""Take the weights of one part out of a whole model's checkpoint, such as the text model of a vision-language model.

A checkpoint names its tensors as the version of transformers that saved it did. The library's own conversion says where each
belongs in today's model, so that every layout is read which the library reads itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from mmzoo.api import Source, SourceError, construct_model, quiet


@dataclass(frozen=True)
class PartOfModel:
    """Name a part of a larger model of transformers.

    Args:
        cls, config: of the larger model.
        names: where the part's modules are: a prefix of names in the larger model, such as ``model.language_model.``, to the
            prefix in the part, such as ``model.``.
    """

    cls: type[PreTrainedModel]
    config: PreTrainedConfig
    names: Mapping[str, str]

    def read(self, source: Source) -> dict[str, Tensor]:
        """Return the part's tensors by their names in the part. Only the files that hold them are fetched.

        Raises:
            SourceError: a file cannot be fetched, or the installed version of transformers has no such conversion.
        """
        try:
            from transformers.conversion_mapping import get_model_conversion_mapping
            from transformers.core_model_loading import (
                WeightConverter,
                WeightRenaming,
                convert_and_load_state_dict_in_model,
                rename_source_key,
            )
            from transformers.modeling_utils import LoadStateDictConfig
        except ImportError as error:  # these names are not documented by the library
            raise SourceError(f"this version of transformers cannot take a part out of a {self.cls.__name__}: {error}") from None
        with torch.device("meta"), quiet():
            whole = construct_model(self.cls, self.config)
        mapping: list[Any] = get_model_conversion_mapping(whole)
        own = whole.state_dict()
        renamings: list[Any] = [one for one in mapping if isinstance(one, WeightRenaming)]
        converters: list[Any] = [one for one in mapping if isinstance(one, WeightConverter)]

        def is_in_part(name: str) -> bool:
            target, _ = rename_source_key(name, renamings, converters, whole.base_model_prefix, own)
            return any(one.startswith(tuple(self.names)) for one in ((target, name) if name in own else (target,)))

        tensors: dict[str, Any] = {}
        for path in source.weights(self.cls.__name__, is_in_part):
            with safe_open(path, "pt") as file:
                tensors.update({name: file.get_tensor(name) for name in file.keys() if is_in_part(name)})  # noqa: SIM118
        options = LoadStateDictConfig(weight_mapping=mapping, dtype=torch.float32)
        with quiet():
            convert_and_load_state_dict_in_model(whole, tensors, options)
        state = {name: value for name, value in whole.state_dict().items() if not value.is_meta}
        return {
            prefix + name.removeprefix(start): value
            for start, prefix in self.names.items()
            for name, value in state.items()
            if name.startswith(start)
        }
