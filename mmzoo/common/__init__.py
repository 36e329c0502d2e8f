"""Provide general helpers that do not know about models: files, parsing, text for terminals, progress, energy, versions."""
