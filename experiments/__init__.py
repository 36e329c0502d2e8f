"""Run experiments that a reader can repeat on two cores: ``python -m experiments``."""
