"""Provide FiLM for mmzoo: the fusion `film` and the recipe `cnn-film-bag-of-words`."""
