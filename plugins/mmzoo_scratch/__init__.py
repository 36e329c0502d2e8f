"""Provide parts from scratch: `cnn`, `lstm` and `bag-of-words`, and the encoder `none`."""
