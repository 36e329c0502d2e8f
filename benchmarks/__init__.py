"""What mmzoo costs beside the plain code that a user would write without it: ``python -m benchmarks``."""
