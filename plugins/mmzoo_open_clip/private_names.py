"""Collect the private names of open_clip that this plugin uses, as seen in open_clip 3.3.

tests/plugins/test_encoder_layers.py fails where a newer version has changed them.
"""

from __future__ import annotations

from open_clip import model as open_clip_model
from open_clip.model import CLIPVisionCfg
from torch import nn


def build_vision_tower(embed_dim: int, config: CLIPVisionCfg, quick_gelu: bool) -> nn.Module:
    """Build an image tower alone. The public classes of open_clip build a text tower too.

    Raises:
        AttributeError: this version of open_clip has no such function.
    """
    return open_clip_model._build_vision_tower(embed_dim=embed_dim, vision_cfg=config, quick_gelu=quick_gelu)
