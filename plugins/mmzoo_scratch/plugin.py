"""Encoders and language models that start from scratch and learn everything from the data at hand."""

from mmzoo.api import Entry, hookimpl


@hookimpl
def mmzoo_encoders():
    return [
        Entry(
            "encoder",
            "cnn",
            target="mmzoo_scratch.cnn:CNN",
            summary="a small convolutional network for small pictures, from scratch",
            modality="image",
            license="Apache-2.0",
            source="LeCun et al. 1998, https://doi.org/10.1109/5.726791",
            tiny={"image_size": 16, "channels": [8, 16]},
        ),
        Entry(
            "encoder",
            "none",
            target="mmzoo_scratch.nothing:Nothing",
            summary="looks at nothing: with fusion 'none' for text alone, with a prefix for a learned constant prompt",
            license="Apache-2.0",
            source="prompt tuning, Lester et al. 2021, https://arxiv.org/abs/2104.08691, for its use with a prefix",
        ),
    ]


@hookimpl
def mmzoo_language_models():
    return [
        Entry(
            "language_model",
            "lstm",
            target="mmzoo_scratch.lstm:LSTM",
            summary="a long short-term memory network that reads and writes, its vocabulary learned from the data",
            modality="text",
            license="Apache-2.0",
            source="Hochreiter and Schmidhuber 1997, https://doi.org/10.1162/neco.1997.9.8.1735",
            tiny={"dim": 16},
        ),
        Entry(
            "language_model",
            "bag-of-words",
            target="mmzoo_scratch.bag:BagOfWords",
            summary="the mean of learned word vectors, from scratch",
            modality="text",
            license="Apache-2.0",
            source="Joulin et al. 2017 (fastText), https://arxiv.org/abs/1607.01759",
            tiny={"dim": 16},
        ),
    ]
