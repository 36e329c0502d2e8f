"""Register what mmzoo-film provides, as data. It imports no torch; a target is imported when it is built."""

from mmzoo.api import Entry, hookimpl

MMZOO_API = "1.0"  # the version of mmzoo's plugin API that this was written for


@hookimpl
def mmzoo_fusions():
    return [
        Entry(
            "fusion",
            "film",
            target="mmzoo_film.fusion:FilmFusion",
            summary="text states scale and shift the channels of visual tokens, after the language model (FiLM)",
            license="Apache-2.0",
            source="FiLM, Perez et al. 2018, https://arxiv.org/abs/1709.07871",
            tiny={"channels": 8},
        ),
    ]


@hookimpl
def mmzoo_recipes():
    return [
        Entry(
            "recipe",
            "cnn-film-bag-of-words",
            target="mmzoo_film.recipe:RECIPE",
            summary="from scratch: a question's words modulate convolutional features (FiLM)",
            modality="image",
            license="Apache-2.0",
            source="FiLM, Perez et al. 2018, https://arxiv.org/abs/1709.07871",
        ),
    ]
