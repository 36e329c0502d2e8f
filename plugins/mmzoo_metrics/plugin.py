"""Register the metrics."""

from __future__ import annotations

from mmzoo.api import Entry, hookimpl

_SKLEARN = "as in scikit-learn, https://scikit-learn.org/stable/modules/model_evaluation.html"
_COCO = "as in https://github.com/salaniz/pycocoevalcap"
_BLEU = f"Papineni et al. 2002, https://aclanthology.org/P02-1040; {_COCO}"


def _entry(name: str, target: str, source: str, summary: str) -> Entry:
    """Return the entry of a metric."""
    return Entry("metric", name, f"mmzoo_metrics.{target}", summary, license="Apache-2.0", source=source)


# fmt: off
_METRICS = (
    _entry("accuracy", "classification:Accuracy", _SKLEARN, "share of examples whose label is right"),
    _entry("exact-match", "classification:ExactMatch",
           "SQuAD, Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250, without its other normalisation",
           "share of texts equal to a reference but for case, spaces and a final full stop"),
    _entry("precision", "classification:Precision", _SKLEARN, "right among those given a label; mean over the labels"),
    _entry("recall", "classification:Recall", _SKLEARN, "found among those that have a label; mean over the labels"),
    _entry("f1", "classification:F1", _SKLEARN, "harmonic mean of precision and recall; mean over the labels"),
    *(_entry(f"bleu-{n}", f"caption:Bleu{n}", _BLEU,
             f"n-gram precision to n = {n} with brevity penalty, over the whole set; COCO's, without Java") for n in range(1, 5)),
    _entry("rouge-l", "caption:RougeL", f"Lin 2004, https://aclanthology.org/W04-1013; {_COCO}",
           "F-score of the longest common subsequence; COCO's, without Java"),
    _entry("cider-d", "caption:CiderD", f"Vedantam et al. 2015, https://arxiv.org/abs/1411.5726; {_COCO}",
           "TF-IDF n-gram similarity to the references, 0 to 10; COCO's, without Java"),
    _entry("meteor", "meteor:Meteor", f"Denkowski and Lavie 2014, https://aclanthology.org/W14-3348; {_COCO}",
           "the official METEOR 1.5 (stems, synonyms, paraphrases); needs Java and mmzoo[meteor]"),
    _entry("vqa-accuracy", "vqa:VQAAccuracy",
           "Antol et al. 2015, https://arxiv.org/abs/1505.00468; as in https://github.com/GT-Vision-Lab/VQA",
           "agreement with the ten answers to a question, normalised, as in the VQA challenge"),
)
# fmt: on


@hookimpl
def mmzoo_metrics() -> list[Entry]:
    return list(_METRICS)
