"""Register the encoders of OpenCLIP."""

from __future__ import annotations

from mmzoo.api import Entry, hookimpl


@hookimpl
def mmzoo_encoders() -> list[Entry]:
    return [
        Entry(
            "encoder",
            "open_clip",
            target="mmzoo_open_clip.encoder:OpenCLIP",
            summary="any image tower of OpenCLIP, by architecture and weights: open_clip:ViT-B-32/laion2b_s34b_b79k",
            modality="image",
            license="varies",
            source="https://arxiv.org/abs/2212.07143",
            variant="ViT-B-32/laion2b_s34b_b79k",
            tiny={
                "config": {
                    "embed_dim": 24,
                    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16},
                }
            },
        )
    ]
