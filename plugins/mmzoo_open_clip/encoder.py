"""Wrap image towers of OpenCLIP (Cherti et al. 2022, https://arxiv.org/abs/2212.07143;
https://github.com/mlfoundations/open_clip, MIT; each checkpoint has its own licence)."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import open_clip
import torch
from open_clip.model import CLIPVisionCfg
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict
from open_clip.transformer import VisionTransformer
from PIL import Image
from pydantic import BaseModel, Field, model_validator
from safetensors.torch import load_file
from torch import Tensor, nn

from mmzoo.api import (
    BadRecipe,
    DoesNotFit,
    Encoder,
    Features,
    FeatureSpec,
    Options,
    SourceError,
    UnknownName,
    Weights,
    close_names,
    did_you_mean,
    explain_loading,
    fetch_weights,
)
from mmzoo_open_clip.private_names import build_vision_tower

WEIGHTS = "open_clip_model.safetensors"


class OpenCLIPOptions(Options):
    """Hold the options of `OpenCLIP`."""

    variant: str = Field(
        "",
        description="architecture and weights, `ViT-B-32/laion2b_s34b_b79k`; the weights may be left out where none are loaded",
    )
    revision: str | None = Field(None, description="branch, tag or commit of the weights on the Hub")
    config: dict[str, Any] | None = Field(
        None, description="build from this configuration (`embed_dim`, `vision_cfg`) and fetch nothing; random weights only"
    )
    layer: int = Field(-1, description="where tokens come from: -1 the tower's output, -2 the last block's input")
    keep_class_token: bool = Field(False, description="leave the class token in the tokens")

    @model_validator(mode="after")
    def _some_source(self) -> OpenCLIPOptions:
        if self.config is None and not self.variant:
            raise ValueError("needs a variant ('open_clip:ViT-B-32/laion2b_s34b_b79k') or a config")
        if self.config is not None and not (
            isinstance(self.config.get("embed_dim"), int) and isinstance(self.config.get("vision_cfg"), dict)
        ):
            raise ValueError("config needs embed_dim and vision_cfg")
        return self


class OpenCLIP(Encoder):
    """Run the image tower of an OpenCLIP model; its text tower is not built.

    ``tokens`` are the patches (or a CNN's feature map, row by row) before the projection, ``pooled`` is the projected image
    embedding, not normalised.
    """

    Options: ClassVar[type[BaseModel]] = OpenCLIPOptions
    default_train: ClassVar[str] = "frozen"
    pretrainable: ClassVar[bool] = True

    def __init__(self, options: OpenCLIPOptions) -> None:
        """Build the tower with random weights.

        Raises:
            UnknownName: no such architecture, or no such weights of it.
            BadRecipe: ``config`` is not a configuration.
            DoesNotFit: the tower does not give a single grid of features.
        """
        super().__init__()
        self.options = options
        self._tag: dict[str, Any] = {}
        if options.config is not None:
            self.arch, config = "config", dict(options.config)
        else:
            self.arch, tag = split_variant(options.variant)
            config = open_clip.get_model_config(self.arch)
            if tag:
                self._tag = dict(open_clip.get_pretrained_cfg(self.arch, tag))
                if self._tag.get("quick_gelu"):  # such weights lose accuracy without it, and open_clip only warns
                    config["quick_gelu"] = True
        self._config = config
        self.model: Any = self._create()
        self._weights: Weights | None = None
        size = self.model.image_size
        preprocess = merge_preprocess_dict(merge_preprocess_dict(PreprocessCfg(), self._tag), {"size": size})
        with torch.device("cpu"):
            self.transform = OpenCLIPTransform(image_transform_v2(PreprocessCfg(**preprocess), is_train=False))
        self._measure(*(size if isinstance(size, tuple | list) else (size, size)))

    @property
    def has_pretrained(self) -> bool:
        return self.options.config is None

    def load_pretrained(self) -> None:
        """Replace the tower by one with the pretrained weights.

        Raises:
            SourceError: no weights are named, or they cannot be fetched or read, or are another tower's.
        """
        if self.options.config is not None:
            raise SourceError("config: it has no pretrained weights; set pretrained: false, or give a variant instead")
        if not self._tag:
            known = open_clip.list_pretrained_tags_by_model(self.arch)
            raise SourceError(
                f"open_clip:{self.arch} names no weights; "
                + (
                    f"write open_clip:{self.arch}/{known[0]}, or one of {', '.join(known[1:9])}"
                    if known
                    else "set pretrained: false"
                )
            )
        name, filename = os.path.split(self._tag.get("hf_hub") or "")
        label = f"open_clip:{self.options.variant}"
        if not name or Path(filename).suffix not in ("", ".bin", ".pt", ".pth", ".safetensors"):
            raise SourceError(f"{label} has no safetensors on the Hub, and pickled weights are never loaded")
        wanted = str(Path(filename).with_suffix(".safetensors")) if filename else WEIGHTS
        weights = fetch_weights(label, name, [wanted], self.options.revision)
        with explain_loading(label):
            state = {key[len("visual.") :]: value for key, value in load_file(weights.path).items() if key.startswith("visual.")}
            model = self._create("cpu")
            model.load_state_dict(state, strict=True)
        self.model, self._weights = model, weights

    def lock(self) -> dict[str, Any]:
        return {} if self._weights is None else self._weights.lock()

    def uncalled(self, module: nn.Module) -> Collection[str]:
        # EVA's trunk, which is timm's, puts a bias of queries and of values beside it.
        return ("qkv",) if getattr(module, "q_bias", None) is not None else super().uncalled(module)

    def blocks(self) -> Sequence[nn.Module]:
        if isinstance(self.model, VisionTransformer):
            return tuple(getattr(self.model.transformer, "resblocks", ()))
        if isinstance(self.model, ModifiedResNet):
            return (self.model.layer1, self.model.layer2, self.model.layer3, self.model.layer4)
        trunk = getattr(self.model, "trunk", None)
        for name in ("blocks", "stages", "layers"):
            blocks = getattr(trunk, name, None)
            if isinstance(blocks, nn.ModuleList | nn.Sequential) and len(blocks):
                return tuple(blocks)
        return ()

    def forward(self, inputs: Tensor) -> Features:
        """Turn images ``inputs`` [batch, 3, height, width] into features."""
        return Features(*run(self.model, inputs, self.options.layer, self.options.keep_class_token))

    def _create(self, device: str | None = None) -> Any:
        try:
            vision = CLIPVisionCfg(**{**self._config["vision_cfg"], "timm_model_pretrained": False})
            with torch.device(device or torch.get_default_device()):
                return build_vision_tower(self._config["embed_dim"], vision, bool(self._config.get("quick_gelu"))).float()
        except Exception as error:  # each tower checks its arguments in its own way
            raise BadRecipe(f"encoder.config: open_clip cannot build it: {type(error).__name__}: {error}") from error

    def _measure(self, height: int, width: int) -> None:
        """Set the spec from the tower's shapes on the meta device."""
        twin = self.model if next(self.model.parameters()).is_meta else self._create("meta")
        was_training = twin.training
        try:
            with torch.no_grad():
                tokens, pooled = run(
                    twin.eval(),
                    torch.empty(1, 3, height, width, device="meta"),
                    self.options.layer,
                    self.options.keep_class_token,
                )
        finally:
            twin.train(was_training)
        self.spec = FeatureSpec(dim=tokens.shape[2], pooled_dim=pooled.shape[1], tokens=tokens.shape[1])


def run(model: Any, inputs: Tensor, layer: int = -1, keep: bool = False) -> tuple[Tensor, Tensor]:
    """Return tokens [batch, tokens, dim] and the projected embedding [batch, embed_dim] of an image tower.

    Args:
        layer: -1 for the tower's output, else a block, counted from 1 or from the end.
        keep: keep the class token.

    Raises:
        DoesNotFit: the tower does not give a single grid of features, or not at that layer.
    """
    if isinstance(model, VisionTransformer):
        return _run_transformer(model, inputs, layer, keep)
    if layer != -1:
        raise DoesNotFit(
            f"encoder.layer: {layer}: open_clip's {type(model).__name__} gives its output alone; leave it at -1, or choose a ViT "
            "architecture"
        )
    if isinstance(model, ModifiedResNet):
        out = model.forward_intermediates(inputs, indices=1)
        return out["image_intermediates"][-1].flatten(2).transpose(1, 2), out["image_features"]
    if isinstance(model, TimmModel):
        features = model.trunk.forward_features(inputs)
        if isinstance(features, Tensor) and features.ndim in (3, 4):
            pooled = model.head(model.trunk.forward_head(features))
            if features.ndim == 3:
                return features if keep else features[:, getattr(model.trunk, "num_prefix_tokens", 0) :], pooled
            is_last = getattr(model.trunk, "output_fmt", "NCHW") == "NHWC"
            return (features.flatten(1, 2) if is_last else features.flatten(2).transpose(1, 2)), pooled
    raise DoesNotFit(f"open_clip's {type(model).__name__} gives no single grid of features; choose a ViT architecture")


def _run_transformer(model: VisionTransformer, inputs: Tensor, layer: int, keep: bool) -> tuple[Tensor, Tensor]:
    blocks = len(model.transformer.resblocks)
    if not layer or not -blocks <= layer <= blocks:
        raise DoesNotFit(f"encoder.layer: {layer}: this tower has {blocks} blocks, counted from 1, or from -1 at the end")
    # If pooling comes before the last norm, that norm does not apply to tokens.
    normed = layer == -1 and model.attn_pool is None and not model.final_ln_after_pool
    out = model.forward_intermediates(
        inputs,
        indices=[layer if layer < 0 else layer - 1],
        normalize_intermediates=normed,
        output_fmt="NLC",
        output_extra_tokens=True,
    )
    tokens, prefix = out["image_intermediates"][-1], out["image_intermediates_prefix"][-1]
    return torch.cat([prefix, tokens], 1) if keep else tokens, out["image_features"]


def split_variant(variant: str) -> tuple[str, str]:
    """Split ``ARCH/WEIGHTS`` or ``ARCH`` into the two names that open_clip knows; the second may be empty.

    Raises:
        UnknownName: with the nearest names.
    """
    known = open_clip.list_models()
    arch, _, tag = variant.rpartition("/")
    arch = arch.replace("/", "-")  # papers write ViT-B/32
    if arch not in known:
        if variant.replace("/", "-") in known:
            return variant.replace("/", "-"), ""
        arch = arch or variant
        advice = did_you_mean(arch, known) or "`open_clip.list_models()` has all names"
        raise UnknownName(f"open_clip has no architecture '{arch}'; {advice}")
    if not open_clip.is_pretrained_cfg(arch, tag):
        tags = open_clip.list_pretrained_tags_by_model(arch)
        known_tags = close_names(tag, tags) or tags
        raise UnknownName(f"open_clip has no weights '{tag}' of {arch}; there are: {', '.join(known_tags) or 'none'}")
    return arch, tag


@dataclass(frozen=True)
class OpenCLIPTransform:
    """Turn a picture into [3, height, width] with open_clip's transform for the tower."""

    steps: Any

    def __call__(self, image: Image.Image) -> Tensor:
        return self.steps(image.convert("RGB"))
