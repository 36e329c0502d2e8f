"""Provide image encoders of OpenCLIP."""
