"""Provide encoders and language models of the transformers library."""
