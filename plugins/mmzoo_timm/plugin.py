"""Register the encoders of timm."""

from __future__ import annotations

from mmzoo.api import Entry, hookimpl


@hookimpl
def mmzoo_encoders() -> list[Entry]:
    return [
        Entry(
            "encoder",
            "timm",
            target="mmzoo_timm.encoder:Timm",
            summary="any image model of timm, such as timm:resnet18 or timm:vit_tiny_patch16_224",
            modality="image",
            license="varies",
            source="https://github.com/huggingface/pytorch-image-models",
            tiny={"variant": "test_vit", "image_size": 64, "pretrained": False},
        )
    ]
