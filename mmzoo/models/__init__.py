"""Build models from recipes, load and save them, and run them: prediction, generation and streaming."""
