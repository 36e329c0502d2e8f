"""Parts from scratch: `cnn`, `lstm` and `bag-of-words`."""
