"""Provide image encoders of timm."""
