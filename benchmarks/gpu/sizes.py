"""The sizes of what is measured: of a GPU's memory, or small."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

VIT_L = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
VIT_B = {"model_type": "vit", "image_size": 224, "patch_size": 16}  # ViTConfig's own sizes are those of a base model


def llama(vocabulary: int, dim: int, inner: int, layers: int, heads: int) -> dict[str, Any]:
    sizes = {"hidden_size": dim, "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads}
    return {**sizes, "vocab_size": vocabulary, "num_key_value_heads": heads, "max_position_embeddings": 2048}


@dataclass(frozen=True)
class Sizes:
    """Hold the sizes, and the seconds that each part takes at most."""

    gpu: bool
    peak: float | None  # operations a second
    llava: dict[str, Any]
    training: dict[str, Any]
    steps: int  # of a turn
    tokens: int
    half_step: float | None  # the target of a step in 16 bits beside float32
    seconds: dict[str, int]

    @classmethod
    def of(cls, facts: dict[str, Any]) -> Sizes:
        """Return the sizes for a device as `benchmarks.gpu.device.describe` tells of it."""
        return cls._large(facts) if "GiB" in facts else cls._small()

    @classmethod
    def _large(cls, facts: dict[str, Any]) -> Sizes:
        """CLIP ViT-L/14 at 336 pixels, as LLaVA-1.5 has it, and a Llama of 0.55 billion weights: 0.86 billion together."""
        roomy, peak = facts["GiB"] > 38, facts["peak TFLOP/s"]
        return cls(
            gpu=True,
            peak=None if peak == "unknown" else peak * 1e12,
            llava={
                "vision": {**VIT_L, "image_size": 336, "patch_size": 14, "projection_dim": 768},
                "text": llama(32000, 1536, 4096, 16, 12),
                "batch": 16 if roomy else 4,
            },
            training={
                "vision": VIT_B,
                "text": {"model_type": "llama", **llama(261, 768, 2048, 8, 12)},
                "batch": 32,
                "pictures": 128,
                "steps": 30,
                "warm": 10,
                "workers": 2,
            },
            steps=10,
            tokens=64,
            half_step=1.0,
            seconds={"tests": 75, "precision": 60, "llava": 75, "writing": 30, "cache": 60},
        )

    @classmethod
    def _small(cls) -> Sizes:
        vision = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}
        return cls(
            gpu=False,
            peak=None,
            llava={
                "vision": {**vision, "image_size": 112, "patch_size": 14, "projection_dim": 128},
                "text": llama(4096, 256, 704, 4, 4),
                "batch": 8,
            },
            training={
                "vision": {"model_type": "vit", **vision, "image_size": 96, "patch_size": 16},
                "text": {"model_type": "llama", **llama(261, 128, 352, 2, 4)},
                "batch": 8,
                "pictures": 32,
                "steps": 12,
                "warm": 2,
                "workers": 0,
            },
            steps=2,
            tokens=24,
            half_step=None,
            seconds={"tests": 15, "precision": 20, "llava": 30, "writing": 15, "cache": 15},
        )
