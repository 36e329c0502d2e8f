"""Register the data sets."""

from __future__ import annotations

from typing import Any

from mmzoo.api import Entry, hookimpl


def _entry(name: str, target: str, license: str, source: str, summary: str, **tiny: Any) -> Entry:
    """Return the entry of a data set; ``tiny`` has the options that make it small."""
    return Entry("dataset", name, f"mmzoo_datasets.{target}", summary, "image", license, source, tiny=tiny)


# fmt: off
_DATASETS = (
    _entry("easy-vqa", "easy_vqa:EasyVQA", "MIT", "https://github.com/vzhou842/easy-VQA",
           "48,248 questions about 5,000 pictures of coloured shapes, 13 answers; installs from PyPI", limit=8),
    _entry("openmoji", "openmoji:OpenMoji", "CC-BY-SA-4.0", "https://openmoji.org",
           "3,700 emoji and their English names, with held-out combinations of concept, gender and skin tone", limit=8),
    _entry("three-signals", "three_signals:ThreeSignals", "Apache-2.0", "generated here from a seed",
           "remarks whose sentiment is the parity of a text, a face and a voice, and their topic; made by code",
           train_size=32, validation_size=32, test_size=32),
    _entry("files", "files:Files", "varies", "https://huggingface.co/docs/datasets/loading",
           "your own: `files:PATH`, a .jsonl, .json, .csv or .parquet file, or a folder with one a split"),
    _entry("datasets", "hub:HubDataset", "varies", "https://huggingface.co/docs/datasets",
           "any images or audio of the `datasets` library: `datasets:org/name[@revision]` or `datasets:FOLDER`"),
)
# fmt: on


@hookimpl
def mmzoo_datasets() -> list[Entry]:
    return list(_DATASETS)
