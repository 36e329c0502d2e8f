"""Define the fusion that does nothing: the language model reads only its text."""

from __future__ import annotations

from mmzoo.api import Fusion


class NoFusion(Fusion):
    """Add nothing, early, deep or late. Use it with encoder ``none``, for text alone."""
