"""A plugin for mmzoo: fusion, recipe."""
