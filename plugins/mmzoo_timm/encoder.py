"""Wrap image models of timm, PyTorch Image Models (Wightman 2019, https://github.com/huggingface/pytorch-image-models,
Apache-2.0; each checkpoint has its own licence)."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import timm
import torch
from PIL import Image
from pydantic import BaseModel, Field
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn

from mmzoo.api import (
    BadRecipe,
    DoesNotFit,
    Encoder,
    Features,
    FeatureSpec,
    MmzooError,
    Options,
    SourceError,
    UnknownName,
    Weights,
    did_you_mean,
    explain_loading,
    fetch_weights,
)

BLOCKS = ("blocks", "stages", "layers", "transformers", "levels", "dense_stages")
SAFETENSORS = ("model.safetensors", "open_clip_model.safetensors")


class TimmOptions(Options):
    """Hold the options of `Timm`."""

    variant: str = Field(description="name of a timm model, with or without a tag: `resnet18.a1_in1k`", min_length=1)
    revision: str | None = Field(None, description="branch, tag or commit of the weights on the Hub")
    image_size: int | None = Field(None, ge=16, description="height and width of the images; empty for the model's own")
    layer: int = Field(-1, description="where tokens come from: -1 the model's output, -2 the last block's (or stage's) input")
    keep_class_token: bool = Field(False, description="leave class, distillation and register tokens in the tokens")


class Timm(Encoder):
    """Run any image model of timm.

    Feature maps become tokens row by row; class and register tokens are left out unless asked for. ``pooled`` is the input of
    the model's own classifier.
    """

    Options: ClassVar[type[BaseModel]] = TimmOptions
    default_train: ClassVar[str] = "frozen"
    pretrainable: ClassVar[bool] = True

    def __init__(self, options: TimmOptions) -> None:
        """Build the model with random weights.

        Raises:
            UnknownName: timm has no such model, or no such tag of it.
            DoesNotFit: it does not give a single grid of features.
            BadRecipe: it cannot be built at ``image_size``.
        """
        super().__init__()
        self.options = options
        self.name = options.variant
        check_name(self.name)
        self.model: Any = self._create()
        self._weights: Weights | None = None
        self._measure()

    def load_pretrained(self) -> None:
        """Replace the model by one with the pretrained weights.

        Raises:
            SourceError: there are no pretrained weights, or they cannot be fetched or read.
        """
        config = self.model.pretrained_cfg
        name = config.get("hf_hub_id")
        if not name:
            known = timm.list_pretrained(f"{self.name.partition('.')[0]}.*")
            raise SourceError(
                f"timm:{self.name} has no pretrained weights on the Hub; "
                + (f"choose one of {', '.join(known[:5])}" if known else "set pretrained: false, or choose another model")
            )
        filename = config.get("hf_hub_filename")
        names = [str(Path(filename).with_suffix(".safetensors")), *SAFETENSORS] if filename else SAFETENSORS
        weights = fetch_weights(f"timm:{self.name}", name, names, self.options.revision)
        with explain_loading(f"timm:{self.name}"), _load_results() as results:
            self.model = self._create(pretrained=True, pretrained_cfg_overlay={"file": str(weights.path)})
        # Without its classifier, timm loads the weights that it finds and reports none that are missing.
        missing = results[-1].missing_keys if results else list(self.model.state_dict())
        if missing:
            raise SourceError(f"'{name}' lacks {len(missing)} weights of timm:{self.name}: {', '.join(missing[:5])}")
        self._weights = weights

    def lock(self) -> dict[str, Any]:
        return {} if self._weights is None else self._weights.lock()

    def uncalled(self, module: nn.Module) -> Collection[str]:
        # BEiT, EVA and Swin v2 put a bias of queries and of values beside it.
        return ("qkv",) if getattr(module, "q_bias", None) is not None else super().uncalled(module)

    def blocks(self) -> Sequence[nn.Module]:
        for name in BLOCKS:
            blocks = getattr(self.model, name, None)
            if isinstance(blocks, nn.ModuleList | nn.Sequential) and len(blocks):
                return tuple(blocks)
        layers = [getattr(self.model, f"layer{i}", None) for i in range(1, 5)]
        return tuple(layers) if all(isinstance(layer, nn.Module) for layer in layers) else ()  # type: ignore[arg-type]

    def forward(self, inputs: Tensor) -> Features:
        """Turn images ``inputs`` [batch, 3, height, width] into features."""
        return Features(*self._run(self.model, inputs))

    def _create(self, **options: Any) -> nn.Module:
        size = self.options.image_size
        try:
            if size is not None:
                try:
                    return timm.create_model(self.name, num_classes=0, img_size=size, **options)
                except TypeError:  # a CNN takes any size and has no such argument
                    pass
            return timm.create_model(self.name, num_classes=0, **options)
        except MmzooError:
            raise
        except Exception as error:  # each model checks its arguments in its own way
            if options:
                raise
            raise BadRecipe(f"encoder: timm:{self.name} cannot be built at image_size {size}: {error}") from error

    def _measure(self) -> None:
        """Set the transform at the model's size, and the spec from the model's shapes on the meta device."""
        config = resolve_model_data_config(self.model)
        if self.options.image_size is not None:
            config["input_size"] = (config["input_size"][0], self.options.image_size, self.options.image_size)
        if config["input_size"][0] != 3:
            raise DoesNotFit(f"timm:{self.name} takes images of {config['input_size'][0]} channels; only RGB is supported")
        with torch.device("cpu"):  # it holds tensors
            self.transform = TimmTransform(create_transform(**config, is_training=False))
        with torch.device("meta"):
            twin = self.model if next(self.model.parameters()).is_meta else self._create()
            was_training = twin.training
            try:
                with torch.no_grad():
                    tokens, pooled = self._run(twin.eval(), torch.empty(1, *config["input_size"]))
            except (RuntimeError, ValueError, AssertionError) as error:
                raise BadRecipe(
                    f"encoder: timm:{self.name} cannot be run on images of {config['input_size'][1:]}: {error}"
                ) from error
            finally:
                twin.train(was_training)
        self.spec = FeatureSpec(dim=tokens.shape[2], pooled_dim=pooled.shape[1], tokens=tokens.shape[1])

    def _run(self, model: Any, inputs: Tensor) -> tuple[Tensor, Tensor]:
        if self.options.layer != -1:
            return self._run_to(self.options.layer, model, inputs)
        features = model.forward_features(inputs)
        if not isinstance(features, Tensor) or features.ndim not in (3, 4):
            raise DoesNotFit(f"timm:{self.name} gives features of several scales and no single grid; choose another model")
        tokens = as_tokens(features, model, keep=self.options.keep_class_token)
        return tokens, model.forward_head(features, pre_logits=True)

    def _run_to(self, layer: int, model: Any, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens of the block (or a CNN's stage) ``layer``, counted from 1, or from -1 at the end, and the pooled
        vector."""
        run = getattr(model, "forward_intermediates", None)
        if run is None:
            raise DoesNotFit(f"encoder.layer: {layer}: timm:{self.name} gives its output alone; leave it at -1")
        if not layer:
            raise DoesNotFit("encoder.layer: 0: timm counts its layers from 1; -1 is the model's output")
        options = {"return_prefix_tokens": True} if self.options.keep_class_token and _prefix_tokens(model) else {}
        if options and "return_prefix_tokens" not in inspect.signature(run).parameters:
            raise DoesNotFit(f"encoder.keep_class_token: timm:{self.name} keeps it in its output alone; leave layer at -1")
        try:
            features, (output,) = run(inputs, indices=[layer if layer < 0 else layer - 1], **options)
        except AssertionError as error:
            raise DoesNotFit(f"encoder.layer: {layer}: timm:{self.name} has no such layer: {error}") from None
        maps, prefix = output if options else (output, None)
        tokens = maps.flatten(2).transpose(1, 2)
        return tokens if prefix is None else torch.cat([prefix, tokens], 1), model.forward_head(features, pre_logits=True)


def check_name(name: str) -> None:
    """Refuse a name that timm does not know.

    Raises:
        UnknownName: timm has no model of that name, or no weights of that tag.
    """
    arch, _, tag = name.partition(".")
    if not timm.is_model(arch):
        advice = did_you_mean(arch, timm.list_models()) or "`timm.list_models('*word*')` finds names"
        raise UnknownName(f"timm has no model '{arch}'; {advice}")
    known = [full.partition(".")[2] for full in timm.list_pretrained(f"{arch}.*")]
    if tag and tag not in known:
        raise UnknownName(f"timm has no weights '{tag}' of {arch}; there are: {', '.join(known) or 'none'}")


def as_tokens(features: Tensor, model: Any, *, keep: bool = False) -> Tensor:
    """Turn the result of a timm model's ``forward_features`` into tokens [batch, tokens, dim].

    Class and register tokens are left out unless ``keep`` is true.
    """
    if features.ndim == 4:
        is_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
        return features.flatten(1, 2) if is_last else features.flatten(2).transpose(1, 2)
    return features if keep else features[:, _prefix_tokens(model) :]


def _prefix_tokens(model: Any) -> int:
    """Return how many class and register tokens come before the patches."""
    prefix = getattr(model, "num_prefix_tokens", None)
    return int(isinstance(getattr(model, "cls_token", None), nn.Parameter)) if prefix is None else prefix


@contextmanager
def _load_results() -> Iterator[list[Any]]:
    """Collect what each `load_state_dict` returns, since timm does not pass it on."""
    results: list[Any] = []
    original = nn.Module.load_state_dict

    def watched(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        results.append(original(self, *args, **kwargs))
        return results[-1]

    nn.Module.load_state_dict = watched  # type: ignore[method-assign]
    try:
        yield results
    finally:
        nn.Module.load_state_dict = original  # type: ignore[method-assign]


@dataclass(frozen=True)
class TimmTransform:
    """Turn a picture into [3, height, width] with timm's transform for the model."""

    steps: Any

    def __call__(self, image: Image.Image) -> Tensor:
        return self.steps(image.convert("RGB"))
