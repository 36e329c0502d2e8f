"""General helpers that know nothing of models: files, parsing, text for terminals, progress, energy, environment."""
