"""Training: a recipe and a data set to a checkpoint folder."""
