"""Define the recipe as plain data; its keys are those of `mmzoo.Recipe`. This module imports no torch."""

RECIPE = {
    "encoder": "cnn",
    "fusion": "film",
    "language_model": "bag-of-words",
    "task": {"use": "classify", "hidden": 256, "dropout": 0.3},
    "training": {
        "learning_rate": 2e-3,
        "batch_size": 256,
        "epochs": 10,
        "weight_decay": 0.1,
        "keep_images_together": True,
    },
}
