"""Checkpoints of other code: ClipCap's, nanoVLM's, LLaVA's."""
