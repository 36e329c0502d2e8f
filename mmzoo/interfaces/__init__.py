"""Define the contracts between the parts of a model: encoders, fusions, language models and tasks."""
