"""Recipes: what each is, in one line; the choices themselves are in `mmzoo_recipes.recipes`."""

from mmzoo.api import Entry, hookimpl

_EASY_VQA = "easy-VQA, Zhou 2019, https://github.com/vzhou842/easy-VQA"


def _entry(name, summary, source):
    target = f"mmzoo_recipes.recipes:{name.upper().replace('-', '_')}"
    return Entry("recipe", name, target=target, summary=summary, modality="image", license="Apache-2.0", source=source)


@hookimpl
def mmzoo_recipes():
    return [
        _entry(
            "clip-prefix-gpt2",
            "captions: CLIP's image embedding as a 10-token prefix of a frozen GPT-2",
            "ClipCap, Mokady et al. 2021, https://arxiv.org/abs/2111.09734",
        ),
        _entry(
            "vit-concat-bert",
            "classification: ViT and BERT tokens in a single stream",
            "VisualBERT, Li et al. 2019, https://arxiv.org/abs/1908.03557",
        ),
        _entry(
            "siglip-projector-smollm2",
            "questions and answers: every SigLIP token projected into SmolLM2",
            "nanoVLM, https://github.com/huggingface/nanoVLM; LLaVA, https://arxiv.org/abs/2304.08485",
        ),
        _entry(
            "clip-concat-bert",
            "captions: BERT as a decoder, each of its states beside CLIP's image embedding before the vocabulary",
            "Rothe et al. 2020, https://arxiv.org/abs/1907.12461",
        ),
        _entry("cnn-product-lstm", "from scratch: convolutional features times a question's LSTM state", _EASY_VQA),
        _entry("cnn-concat-lstm", "from scratch: convolutional features beside a question's LSTM state", _EASY_VQA),
        _entry(
            "cnn-attention-lstm",
            "from scratch: a question's LSTM state attends to convolutional features",
            "Stacked attention, Yang et al. 2016, https://arxiv.org/abs/1511.02274",
        ),
        _entry(
            "cnn-prefix-gpt",
            "from scratch: convolutional features as the prefix of a small decoder that writes the answer",
            "Frozen, Tsimpoukelli et al. 2021, https://arxiv.org/abs/2106.13884",
        ),
        _entry(
            "cnn-merge-lstm",
            "captions from scratch: an LSTM's state meets convolutional features just before the vocabulary",
            "m-RNN, Mao et al. 2015, https://arxiv.org/abs/1412.6632",
        ),
    ]
