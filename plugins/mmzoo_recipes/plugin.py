"""Register the recipes, each with a one-line summary; the choices themselves are in `mmzoo_recipes.recipes`."""

from __future__ import annotations

from mmzoo.api import Entry, hookimpl

_EASY_VQA = "easy-VQA, Zhou 2019, https://github.com/vzhou842/easy-VQA"


def _entry(name: str, source: str, summary: str) -> Entry:
    """Return the entry of a recipe, which is the constant of that name in `mmzoo_recipes.recipes`."""
    target = f"mmzoo_recipes.recipes:{name.upper().replace('-', '_')}"
    return Entry("recipe", name, target, summary, modality="image", license="Apache-2.0", source=source)


# fmt: off
_RECIPES = (
    _entry("clip-prefix-gpt2", "ClipCap, Mokady et al. 2021, https://arxiv.org/abs/2111.09734",
           "captions: CLIP's image embedding as a 10-token prefix of a frozen GPT-2"),
    _entry("vit-concat-bert", "VisualBERT, Li et al. 2019, https://arxiv.org/abs/1908.03557",
           "classification: ViT and BERT tokens in a single stream"),
    _entry("siglip-projector-smollm2",
           "nanoVLM, https://github.com/huggingface/nanoVLM; LLaVA, https://arxiv.org/abs/2304.08485",
           "questions and answers: every SigLIP token projected into SmolLM2"),
    _entry("clip-concat-bert", "Rothe et al. 2020, https://arxiv.org/abs/1907.12461",
           "captions: BERT as a decoder, each of its states beside CLIP's image embedding before the vocabulary"),
    _entry("cnn-product-lstm", _EASY_VQA, "from scratch: convolutional features times a question's LSTM state"),
    _entry("cnn-concat-lstm", _EASY_VQA, "from scratch: convolutional features beside a question's LSTM state"),
    _entry("cnn-attention-lstm", "Stacked attention, Yang et al. 2016, https://arxiv.org/abs/1511.02274",
           "from scratch: a question's LSTM state attends to convolutional features"),
    _entry("cnn-prefix-gpt", "Frozen, Tsimpoukelli et al. 2021, https://arxiv.org/abs/2106.13884",
           "from scratch: convolutional features as the prefix of a small decoder that writes the answer"),
    _entry("cnn-merge-lstm", "m-RNN, Mao et al. 2015, https://arxiv.org/abs/1412.6632",
           "captions from scratch: an LSTM's state meets convolutional features just before the vocabulary"),
)
# fmt: on


@hookimpl
def mmzoo_recipes() -> list[Entry]:
    return list(_RECIPES)
