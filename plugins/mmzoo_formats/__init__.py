"""Provide the formats of other code's checkpoints: ClipCap's, nanoVLM's, LLaVA's."""
