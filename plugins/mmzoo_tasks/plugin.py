"""What a model is for."""

from mmzoo.api import Entry, hookimpl


def _entry(name, target, summary, source, **tiny):
    return Entry("task", name, target=f"mmzoo_tasks.{target}", summary=summary, license="Apache-2.0", source=source, tiny=tiny)


@hookimpl
def mmzoo_tasks():
    return [
        _entry(
            "classify",
            "classify:Classify",
            "one label of a fixed set, for an image and an optional text",
            "VQA as classification, Antol et al. 2015, https://arxiv.org/abs/1505.00468",
        ),
        _entry(
            "caption",
            "generative:Caption",
            "a text that describes the image, word by word",
            "Show and Tell, Vinyals et al. 2015, https://arxiv.org/abs/1411.4555",
            max_new_tokens=4,
        ),
        _entry(
            "vqa",
            "generative:VQA",
            "an answer to a question about the image, word by word",
            "VQA, Antol et al. 2015, https://arxiv.org/abs/1505.00468; generative as in Frozen, https://arxiv.org/abs/2106.13884",
            max_new_tokens=4,
        ),
    ]
