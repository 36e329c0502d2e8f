"""No fusion: the language model reads its text and nothing else."""

from __future__ import annotations

from mmzoo.api import Fusion


class NoFusion(Fusion):
    """Adds nothing, early, deep or late. It goes with encoder ``none``, for text alone."""
