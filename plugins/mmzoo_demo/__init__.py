"""The command ``mmzoo demo``."""
