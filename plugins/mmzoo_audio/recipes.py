"""Define the registered recipe as plain data."""

AUDIO_PREFIX_GPT = {
    "encoder": "mel-transformer",
    "fusion": {"use": "prefix-mlp", "length": 4},
    "language_model": "gpt-mini",
    "task": {"use": "caption", "max_new_tokens": 8},
    "training": {
        "learning_rate": 1e-3,
        "batch_size": 48,
        "epochs": 12,
        "weight_decay": 0.05,
        "warmup": 0.05,
        "schedule": "cosine",
    },
}
