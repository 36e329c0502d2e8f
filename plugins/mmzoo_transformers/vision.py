"""Wrap vision models of the transformers library (Apache-2.0; each checkpoint has its own licence).

CLIP: Radford et al. 2021, https://arxiv.org/abs/2103.00020. SigLIP: Zhai et al. 2023, https://arxiv.org/abs/2303.15343. ViT:
Dosovitskiy et al. 2020, https://arxiv.org/abs/2010.11929. DINOv2: Oquab et al. 2023, https://arxiv.org/abs/2304.07193. Taking
tokens before the last layer follows LLaVA, https://arxiv.org/abs/2304.08485.
"""

from __future__ import annotations

import copy
import inspect
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F
from transformers import (
    AutoImageProcessor,
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    PreTrainedConfig,
)
from transformers.models.auto.image_processing_auto import get_image_processor_class_from_name
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from mmzoo.api import (
    PROCESSORS,
    BadRecipe,
    DoesNotFit,
    Encoder,
    Features,
    FeatureSpec,
    Options,
    Source,
    SourceError,
    WholeModel,
    class_for,
    config_of,
    construct_model,
    explain_errors,
    load_backbone,
)
from mmzoo_transformers import private_names, towers
from mmzoo_transformers.blocks import find_blocks

# What transformers 5.24 computes wrongly, where no pass on the meta device shows it; `python -m experiments.families` does.
MISFITS = {"rf_detr": "its features of a picture depend on the other pictures of the batch"}
CARRIED = Path(__file__).with_name("known")  # configurations of the entries' default variants
log = logging.getLogger(__name__)


class VisionOptions(Options):
    """Hold the options of `HFVision`."""

    variant: str = Field("", description="id on the Hub, or a local folder")
    revision: str | None = Field(None, description="branch, tag or commit; empty for the main branch")
    config: dict[str, Any] | None = Field(
        None, description="build from this configuration (with its `model_type`) and fetch nothing; random weights only"
    )
    processor: dict[str, Any] | None = Field(
        None,
        description="with a config: how images are prepared, as in preprocessor_config.json, with its `image_processor_type`; "
        "empty for resizing, a crop of the centre and scaling to [-1, 1]",
    )
    layer: int = Field(-1, description="the hidden state that tokens come from: -1 the model's output, -2 the last layer's input")
    keep_class_token: bool = Field(False, description="leave class, distillation and register tokens in the tokens")

    @model_validator(mode="after")
    def _some_source(self) -> VisionOptions:
        check_source(self.variant, self.config)
        if self.processor is not None and self.config is None:
            raise ValueError("processor needs a config; a variant has its own")
        return self


def check_source(variant: str, config: dict[str, Any] | None) -> None:
    """Refuse options that name no model.

    Raises:
        ValueError: as pydantic expects it of a validator.
    """
    if config is None and not variant:
        raise ValueError("needs a variant ('name:owner/model', or 'name:./folder') or a config")
    if config is not None and not isinstance(config.get("model_type"), str):
        raise ValueError("config needs a model_type, e.g. {model_type: gpt2, ...}")


class HFVision(Encoder):
    """Run any vision model of transformers that takes images of one size: transformers, and CNNs, whose feature maps become
    tokens row by row.

    ``pooled`` is the projected image embedding for CLIP (as ClipCap uses it), else the model's own pooled output, else the
    class token, else the mean of the tokens.
    """

    Options: ClassVar[type[BaseModel]] = VisionOptions
    default_train: ClassVar[str] = "frozen"
    pretrainable: ClassVar[bool] = True
    _orders_by_noise = False

    def __init__(self, options: VisionOptions) -> None:
        """Build the model from its configuration, with random weights.

        Raises:
            SourceError: the configuration cannot be fetched or read.
            DoesNotFit: it is not a vision model, or one whose images differ in size, or that draws random numbers in evaluation.
            BadRecipe: ``config`` is not a configuration.
        """
        super().__init__()
        self.options = options
        self.source = None if options.config is not None else Source(options.variant, options.revision, carried=CARRIED)
        self.name = options.variant if self.source is not None else f"a {options.config['model_type']}"  # type: ignore[index]
        config = config_of(options.config) if self.source is None else self.source.config()  # type: ignore[arg-type]
        self._within: str | WholeModel = ""  # the larger model in the source, if this is a part of one
        self._class, self._config, self._extra = self._plan(config)
        with explain_errors(f"'{self.name}' cannot be built", BadRecipe if self.source is None else SourceError):
            self.model: Any = construct_model(self._class, self._config, **self._extra)
        with torch.device("cpu"):  # a processor may hold tensors
            self.transform = self._transform()
        self._measure()
        self._pretrained = False

    @property
    def has_pretrained(self) -> bool:
        return self.source is not None

    def load_pretrained(self) -> None:
        """Replace the model by one with the pretrained weights.

        Raises:
            SourceError: the weights cannot be fetched or read, or are another model's.
        """
        if self.source is None:
            raise SourceError("config: it has no pretrained weights; set pretrained: false, or give a variant instead")
        self.model = load_backbone(self._class, self._config, self.source, within=self._within, **self._extra)
        self._pretrained = True

    def lock(self) -> dict[str, Any]:
        if self.source is None or not self._pretrained:
            return {}
        next((name for name in PROCESSORS if self.source.find(name)), None)
        return self.source.lock()

    def standalone_options(self) -> dict[str, Any] | None:
        if self.source is None:
            return None
        own = self.options.model_dump(exclude_defaults=True, exclude={"variant", "revision"})
        processor = getattr(self.transform, "processor", None) if isinstance(self.transform, ProcessorTransform) else None
        prepared = {} if processor is None else {"processor": json.loads(processor.to_json_string())}
        return {**own, "config": self.source.portable_config(), **prepared}

    def blocks(self) -> Sequence[nn.Module]:
        return find_blocks(self.model)

    def forward(self, inputs: Tensor) -> Features:
        """Turn images ``inputs`` [batch, 3, height, width] into features."""
        tokens, pooled = self._run(self.model, inputs)
        return Features(tokens if self.options.keep_class_token else tokens[:, self._prefix :], pooled)

    def _plan(self, config: PreTrainedConfig) -> tuple[Any, PreTrainedConfig, dict[str, Any]]:
        """Return the model class, its configuration, and options of its constructor."""
        if (problem := MISFITS.get(config.model_type)) is not None:
            raise DoesNotFit(f"'{self.name}': {problem}; choose another encoder, e.g. clip, siglip, dinov2 or timm")
        tower = towers.vision_tower(config, self.name)
        vision = getattr(config, "vision_config", None) if tower is None else None
        if isinstance(vision, PreTrainedConfig):
            if isinstance(vision, CLIPVisionConfig) and isinstance(getattr(config, "projection_dim", None), int):
                vision.projection_dim = config.projection_dim  # the whole model uses its own, not the tower's
            config = vision
        if tower is not None:
            cls, config, self._within = tower.cls, tower.config, tower.within
        elif isinstance(config, CLIPVisionConfig) and "CLIPVisionModel" not in (config.architectures or ()):
            return CLIPVisionModelWithProjection, config, {}
        else:
            cls = class_for(config, MODEL_MAPPING)
        if cls is None or (tower is None and cls.main_input_name != "pixel_values"):
            why = "is not one that transformers can run alone" if vision is not None else "takes no images"
            raise DoesNotFit(
                f"'{self.name}' is a {config.model_type} model, which {why}; choose a vision model, e.g. "
                "clip, siglip, vit, dinov2 or timm"
            )
        if getattr(config, "use_mask_token", False):  # a weight used in pretraining only: here it would get no gradient
            config = copy.deepcopy(config)
            config.use_mask_token = False
        if getattr(config, "mask_ratio", 0) and "noise" in inspect.signature(cls.forward).parameters:  # of pretraining, too
            config = copy.deepcopy(config)
            config.mask_ratio = 0.0
            self._orders_by_noise = isinstance(config.patch_size, int)
        if getattr(config, "num_channels", 3) != 3:
            raise DoesNotFit(f"'{self.name}' takes images of {config.num_channels} channels; only RGB is supported")
        with (
            torch.device("meta"),
            explain_errors(f"'{self.name}' cannot be built", BadRecipe if self.source is None else SourceError),
        ):
            pooler = getattr(construct_model(cls, config), "pooler", None)
        # A dense pooler is a head that most checkpoints lack; the normalised class token is used instead.
        return cls, config, {"add_pooling_layer": False} if isinstance(getattr(pooler, "dense", None), nn.Linear) else {}

    def _transform(self) -> Any:
        if self.source is not None:
            path = next((path for name in PROCESSORS if (path := self.source.find(name))), None)
            if path is not None:
                with explain_errors(f"'{self.name}': {path.name} cannot be used"):
                    processor = AutoImageProcessor.from_pretrained(str(path.parent), trust_remote_code=False)
                return self._transform_of(processor)
            log.warning("'%s' has no %s: images are resized and scaled to [-1, 1]", self.name, PROCESSORS[0])
        if self.options.processor is not None:
            return ProcessorTransform(processor_of(self.options.processor))
        size = getattr(self._config, "image_size", None) or 224
        return PlainTransform(*_pair(size))

    def _transform_of(self, processor: Any) -> ProcessorTransform:
        """Return the transform of the checkpoint's processor, without the tiles that a larger model's cuts a picture into."""
        transform, size = ProcessorTransform(processor), getattr(self._config, "image_size", None)
        if self._within and size is not None:
            pictures = [transform(Image.new("RGB", shape)) for shape in ((64, 48), (48, 80))]
            if {tuple(picture.shape[-2:]) for picture in pictures} - {_pair(size)} or {picture.ndim for picture in pictures} != {
                3
            }:
                return ProcessorTransform(towers.whole_picture(processor, *_pair(size)))
        return transform

    def _measure(self) -> None:
        """Set the spec from the model's shapes, which are computed on the meta device for images of the transform's size."""
        with torch.device("cpu"):  # the meta device may be the default here, and a processor computes
            shapes = {tuple(self.transform(Image.new("RGB", size)).shape) for size in ((64, 48), (48, 80))}
        if len(shapes) > 1 or len(next(iter(shapes))) != 3:
            raise DoesNotFit(f"'{self.name}' takes images of different sizes, which cannot be batched; choose another encoder")
        channels, height, width = shapes.pop()
        # A build makes its parts on the meta device first; what a batch tells need not be asked twice.
        counts = (1, 2) if torch.get_default_device().type == "meta" else (1,)
        with torch.device("meta"):
            model = construct_model(self._class, self._one_layer(), **self._extra)
            try:
                with torch.no_grad(), RandomOperations() as random:
                    runs = [self._run(model.eval(), torch.empty(count, channels, height, width)) for count in counts]
            except Exception as error:  # each model fails in its own way
                if isinstance(error, IndexError) and self.options.layer != -1:
                    layers = self._config.num_hidden_layers if hasattr(self._config, "num_hidden_layers") else "fewer"
                    raise DoesNotFit(f"encoder.layer: {self.options.layer}: '{self.name}' has {layers} layers") from None
                runs, random = self._run_for_real((channels, height, width))
        if random.names:
            raise DoesNotFit(
                f"'{self.name}' draws random numbers in evaluation too ({', '.join(random.names)}): two passes over a picture "
                "would differ; choose another encoder"
            )
        tokens, pooled = runs[0]
        for i, (own, vector) in zip(counts, runs, strict=True):
            if own.ndim != 3 or own.shape != (i, *tokens.shape[1:]) or vector.shape != (i, pooled.shape[1]):
                raise DoesNotFit(
                    f"'{self.name}' gives tokens {list(own.shape)} for a batch of {i}, not a row [tokens, dim] for each picture; "
                    "choose another encoder"
                )
        self._prefix = prefix_tokens(self._config, tokens.shape[1], height, width)
        count = tokens.shape[1] - (0 if self.options.keep_class_token else self._prefix)
        self.spec = FeatureSpec(dim=tokens.shape[2], pooled_dim=pooled.shape[1], tokens=count)

    def _noise(self, inputs: Tensor) -> dict[str, Tensor]:
        """Return the noise that leaves patches in their order, for models that order them by it (ViTMAE)."""
        if not self._orders_by_noise:
            return {}
        height, width = inputs.shape[-2:]
        patch = self._config.patch_size
        patches = (height // patch) * (width // patch)
        return {"noise": torch.arange(patches, device=inputs.device).expand(len(inputs), -1)}

    def _run_for_real(self, shape: tuple[int, ...]) -> tuple[list[tuple[Tensor, Tensor]], RandomOperations]:
        """Return what `_run` does on one image and on two, and the random operations, for a model that the meta device cannot
        run, such as Idefics3's tower."""
        config, layer = copy.deepcopy(self._config), self.options.layer
        layers = getattr(config, "num_hidden_layers", 1)
        if not -layers - 1 <= layer <= layers:
            raise DoesNotFit(f"encoder.layer: {layer}: '{self.name}' has {layers} layers")
        try:
            config.num_hidden_layers = 1  # more change no shape
            with torch.device("cpu"), torch.no_grad(), torch.random.fork_rng(devices=[]):
                model = construct_model(self._class, config, **self._extra).eval()
                with RandomOperations() as random:
                    return [self._run(model, torch.zeros(count, *shape), -1) for count in (1, 2)], random
        except Exception as error:  # each model fails in its own way
            raise DoesNotFit(
                f"'{self.name}' cannot be run on images alone: {error}; choose another encoder, e.g. clip, siglip, dinov2 or timm"
            ) from error

    def _one_layer(self) -> PreTrainedConfig:
        """Return the configuration with one layer where all layers are alike, and with two a stage where there are stages.

        More layers change no shape, and a pass through twelve on the meta device takes as long as loading their weights.
        """
        config, layers = self._config, getattr(self._config, "num_hidden_layers", None)
        depths = getattr(config, "depths", None)
        lists = ("depths", "hidden_sizes", "num_attention_heads")  # one for each stage
        staged = any(isinstance(getattr(config, key, None), list | tuple) for key in lists)
        if self.options.layer != -1:
            return config
        if isinstance(depths, list | tuple) and all(isinstance(depth, int) for depth in depths):
            config = copy.deepcopy(config)
            config.depths = [min(2, depth) for depth in depths]  # of two, one has what alternates, such as shifted windows
        elif isinstance(layers, int) and not staged and hasattr(config, "patch_size"):
            config = copy.deepcopy(config)
            config.num_hidden_layers = 1
        return config

    def _run(self, model: nn.Module, inputs: Tensor, layer: int | None = None) -> tuple[Tensor, Tensor]:
        """Return all tokens [batch, tokens, dim], class token included, and the pooled vector [batch, pooled_dim]."""
        layer = self.options.layer if layer is None else layer
        out = model(pixel_values=inputs, output_hidden_states=layer != -1, **self._noise(inputs))
        last = _as_tokens(out.last_hidden_state, inputs)
        tokens = last if layer == -1 else _as_tokens(out.hidden_states[layer], inputs)
        if (boxes := getattr(self._config, "num_detection_tokens", 0)) > 0:  # after the patches, as in YOLOS
            last, tokens = last[:, :-boxes], tokens[:, :-boxes]
        pooled = getattr(out, "image_embeds", None)
        if pooled is None:
            pooled = getattr(out, "pooler_output", None)
        if pooled is None:
            has_class = prefix_tokens(self._config, last.shape[1], *inputs.shape[-2:]) > 0
            pooled = last[:, 0] if has_class else last.mean(1)
        return tokens, pooled.flatten(1)


def _pair(size: Any) -> tuple[int, int]:
    """Return height and width of a size of images, which is one number for a square."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _as_tokens(hidden: Tensor, inputs: Tensor) -> Tensor:
    """Turn a feature map of ``inputs`` into tokens [batch, height * width, dim]; tokens stay as they are.

    Maps are [batch, dim, height, width], or [batch, height, width, dim] where that alone has the inputs' proportions, as in
    SAM 2. Tokens of several pictures in one row, as in Pixtral, become a row for each.
    """
    if hidden.ndim == 4:
        height, width = inputs.shape[-2:]
        _, first, second, third = hidden.shape
        is_last = first * width == second * height and second * width != third * height
        return hidden.flatten(1, 2) if is_last else hidden.flatten(2).transpose(1, 2)
    return hidden.reshape(len(inputs), -1, hidden.shape[-1]) if hidden.ndim == 3 and len(hidden) == 1 else hidden


class RandomOperations(private_names.DispatchMode):
    """Record the names of the operations in a ``with`` block that draw random numbers; they need not be computed."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags and func.__name__ not in self.names and _dropout_of(func, args, kwargs):
            self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


def _dropout_of(func: Any, args: Any, kwargs: Any) -> float:
    """Return the dropout of an attention operation, which draws nothing without it; 1 for any other operation."""
    names = private_names.argument_names(func)
    given = {**dict(zip(names, args, strict=False)), **(kwargs or {})}
    return given.get("dropout_p", 0.0) if "dropout_p" in names else 1.0


def prefix_tokens(config: PreTrainedConfig, tokens: int, height: int, width: int) -> int:
    """Return how many of ``tokens`` come before the patches: class, distillation and register tokens; 0 for a CNN."""
    if config.model_type == "dinov3_convnext":  # a CNN that puts its pooled vector before its feature map
        return 1
    strides = getattr(config, "strides", None)  # of stages, whose last may have a class token, as in PVT
    patch = math.prod(strides) if isinstance(strides, list | tuple) else getattr(config, "patch_size", None)
    if isinstance(patch, list | tuple):
        patch = patch[0] if len(set(patch)) == 1 else None
    if not isinstance(patch, int) or patch < 1:
        return 0
    extra = tokens - (height // patch) * (width // patch)
    return extra if 0 < extra <= 64 else 0


@dataclass(frozen=True)
class ProcessorTransform:
    """Turn a picture into [3, height, width] with the checkpoint's own image processor."""

    processor: Any

    def __call__(self, image: Image.Image) -> Tensor:
        return self.processor(images=image.convert("RGB"), return_tensors="pt")["pixel_values"][0]


def processor_of(data: dict[str, Any]) -> Any:
    """Build an image processor from plain data with its ``image_processor_type``.

    Raises:
        BadRecipe: no such type, or a value that the type does not take.
    """
    # transformers 4 added "Fast" to the names of what are now the plain ones.
    kind = str(data.get("image_processor_type")).removesuffix("Fast")
    cls = get_image_processor_class_from_name(kind)
    if not hasattr(cls, "from_dict") or not kind.endswith(("ImageProcessor", "ImageProcessorPil")):
        raise BadRecipe(f"encoder.processor.image_processor_type: transformers has no '{kind}'")
    with explain_errors(f"encoder.processor: {kind} does not take it", BadRecipe):
        return cls.from_dict(copy.deepcopy(data))


@dataclass(frozen=True)
class PlainTransform:
    """Turn a picture into [3, height, width] in [-1, 1]: resize its shorter side and crop its centre, as `CLIPImageProcessor`
    does."""

    height: int
    width: int

    def __call__(self, image: Image.Image) -> Tensor:
        pixels = F.pil_to_tensor(image.convert("RGB"))
        height, width = pixels.shape[1:]
        if height * self.width <= width * self.height:
            size = [self.height, max(self.width, self.height * width // height)]
        else:
            size = [max(self.height, self.width * height // width), self.width]
        resized = F.resize(pixels, size, InterpolationMode.BICUBIC, antialias=True)
        cropped = F.crop(resized, (size[0] - self.height) // 2, (size[1] - self.width) // 2, self.height, self.width)
        return F.normalize(cropped.float(), [127.5] * 3, [127.5] * 3)

    @property
    def processor(self) -> Any:
        """Return the same transform as an image processor of transformers, for squares; None for others."""
        if self.height != self.width:
            return None
        size = {"height": self.height, "width": self.width}
        return CLIPImageProcessor(size={"shortest_edge": self.height}, crop_size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)
