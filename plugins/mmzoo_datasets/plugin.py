"""Where examples come from."""

from mmzoo.api import Entry, hookimpl


@hookimpl
def mmzoo_datasets():
    return [
        Entry(
            "dataset",
            "easy-vqa",
            target="mmzoo_datasets.easy_vqa:EasyVQA",
            summary="48,248 questions about 5,000 pictures of coloured shapes, 13 answers; installs from PyPI",
            modality="image",
            license="MIT",
            source="https://github.com/vzhou842/easy-VQA",
            tiny={"limit": 8},
        ),
        Entry(
            "dataset",
            "openmoji",
            target="mmzoo_datasets.openmoji:OpenMoji",
            summary="3,700 emoji and their English names, with held-out combinations of concept, gender and skin tone",
            modality="image",
            license="CC-BY-SA-4.0",
            source="https://openmoji.org",
            tiny={"limit": 8},
        ),
        Entry(
            "dataset",
            "files",
            target="mmzoo_datasets.files:Files",
            summary="your own: `files:PATH`, a .jsonl, .json, .csv or .parquet file, or a folder with one a split",
            modality="image",
            license="varies",
            source="https://huggingface.co/docs/datasets/loading",
        ),
        Entry(
            "dataset",
            "datasets",
            target="mmzoo_datasets.hub:HubDataset",
            summary="any images or audio of the `datasets` library: `datasets:org/name[@revision]` or `datasets:FOLDER`",
            modality="image",
            license="varies",
            source="https://huggingface.co/docs/datasets",
        ),
    ]
