"""Train a recipe on a data set and save the model in a checkpoint folder."""
