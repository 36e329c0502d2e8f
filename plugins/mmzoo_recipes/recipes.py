"""Define the registered recipes as plain data."""

CLIP_PREFIX_GPT2 = {
    "encoder": {"use": "clip", "train": "frozen"},
    "fusion": {"use": "prefix-mlp", "length": 10},
    "language_model": {"use": "gpt2", "train": "frozen"},
    "task": "caption",
    "training": {"learning_rate": 2e-5, "batch_size": 40, "epochs": 10, "warmup": 5000, "schedule": "linear"},
}

VIT_CONCAT_BERT = {
    "encoder": {"use": "vit", "train": "frozen"},
    "fusion": "concat",
    "language_model": {"use": "bert", "train": "full", "learning_rate": 5e-5},
    "task": "classify",
    "training": {"learning_rate": 1e-4, "batch_size": 32, "epochs": 3, "schedule": "linear", "warmup": 0.1},
}

SIGLIP_PROJECTOR_SMOLLM2 = {
    "encoder": {"use": "siglip", "train": "frozen"},
    "fusion": {"use": "projector", "layers": "mlp"},
    "language_model": {"use": "smollm2", "train": "lora:16", "learning_rate": 2e-4},
    "task": "vqa",
    "training": {"learning_rate": 1e-3, "batch_size": 16, "epochs": 1},
}

CLIP_CONCAT_BERT = {
    "encoder": {"use": "clip", "train": "frozen"},
    "fusion": "late-concat",
    "language_model": {"use": "bert-decoder", "train": "full", "learning_rate": 5e-5},
    "task": "caption",
    "training": {"learning_rate": 5e-4, "batch_size": 64, "epochs": 10, "warmup": 0.05},
}

_SMALL = {
    "learning_rate": 2e-3,
    "batch_size": 256,
    "epochs": 10,
    "weight_decay": 0.01,
    "keep_images_together": True,
}

# easy-VQA has only 4,000 pictures, so these two are regularised; their cards have the scores.
_REGULARISED = {**_SMALL, "weight_decay": 0.1}

CNN_PRODUCT_LSTM = {
    "encoder": "cnn",
    "fusion": "late-product",
    "language_model": "lstm",
    "task": {"use": "classify", "hidden": 256, "dropout": 0.3},
    "training": _REGULARISED,
}

CNN_CONCAT_LSTM = {**CNN_PRODUCT_LSTM, "fusion": "late-concat"}

CNN_ATTENTION_LSTM = {
    "encoder": "cnn",
    "fusion": "late-attention",
    "language_model": "lstm",
    "task": {"use": "classify", "hidden": 256},
    "training": {**_SMALL, "epochs": 16},
}

CNN_PREFIX_GPT = {
    "encoder": "cnn",
    "fusion": {"use": "prefix-mlp", "length": 4},
    "language_model": "gpt-mini",
    "task": {"use": "vqa", "template": "{text}", "max_new_tokens": 4},
    # At the others' rate, a decoder from scratch does not learn to use the picture.
    "training": {**_SMALL, "learning_rate": 5e-4, "epochs": 12},
}

CNN_MERGE_LSTM = {
    "encoder": "cnn",
    "fusion": "late-concat",
    "language_model": {"use": "lstm", "dim": 256, "verbatim": True},
    "task": "caption",
    "training": {**_SMALL, "learning_rate": 1e-3, "batch_size": 64, "epochs": 30},
}
