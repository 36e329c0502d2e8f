"""Register the tasks: what a model is for."""

from __future__ import annotations

from typing import Any

from mmzoo.api import Entry, hookimpl


def _entry(name: str, target: str, source: str, summary: str, **tiny: Any) -> Entry:
    """Return the entry of a task; ``tiny`` has the options that make it quick."""
    return Entry("task", name, f"mmzoo_tasks.{target}", summary, license="Apache-2.0", source=source, tiny=tiny)


# fmt: off
_TASKS = (
    _entry("classify", "classify:Classify", "VQA as classification, Antol et al. 2015, https://arxiv.org/abs/1505.00468",
           "one label of a fixed set, for an image and an optional text"),
    _entry("caption", "generative:Caption", "Show and Tell, Vinyals et al. 2015, https://arxiv.org/abs/1411.4555",
           "a text that describes the image, word by word", max_new_tokens=4),
    _entry("vqa", "generative:VQA",
           "VQA, Antol et al. 2015, https://arxiv.org/abs/1505.00468; generative as in Frozen, https://arxiv.org/abs/2106.13884",
           "an answer to a question about the image, word by word", max_new_tokens=4),
    _entry("multi-label", "multi_label:MultiLabel", "Tsoumakas and Katakis 2007, https://doi.org/10.4018/jdwm.2007070101",
           "any number of labels of a fixed set, each with its probability"),
    _entry("regress", "regress:Regress", "Huber 1964, https://doi.org/10.1214/aoms/1177703732; or least squares",
           "one or several numbers, in the units of the data"),
    _entry("contrastive", "contrastive:Contrastive",
           "CLIP, Radford et al. 2021, https://arxiv.org/abs/2103.00020; SigLIP, Zhai et al. 2023, "
           "https://arxiv.org/abs/2303.15343",
           "how well an input and a text belong together; vectors for search", dim=8),
)
# fmt: on


@hookimpl
def mmzoo_tasks() -> list[Entry]:
    return list(_TASKS)
