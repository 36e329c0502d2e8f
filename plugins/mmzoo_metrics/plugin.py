"""Register the metrics."""

from __future__ import annotations

from mmzoo.api import Entry, hookimpl

_SKLEARN = "as in scikit-learn, https://scikit-learn.org/stable/modules/model_evaluation.html"
_COCO = "as in https://github.com/salaniz/pycocoevalcap"
_SCIPY = "as in scipy.stats, https://docs.scipy.org/doc/scipy/reference/stats.html"
_RETRIEVAL = "Karpathy and Fei-Fei 2015, https://arxiv.org/abs/1412.2306"
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
    _entry("mae", "regression:MeanAbsoluteError", _SKLEARN, "mean absolute error of numbers"),
    _entry("mse", "regression:MeanSquaredError", _SKLEARN, "mean squared error of numbers"),
    _entry("r2", "regression:R2", _SKLEARN, "share of the variance of numbers that is explained"),
    _entry("pearson", "regression:Pearson", _SCIPY, "linear correlation of numbers"),
    _entry("spearman", "regression:Spearman", _SCIPY, "correlation of the ranks of numbers"),
    _entry("multi-label-f1", "multi_label:MultiLabelF1", _SKLEARN, "F1 of sets of labels; mean over the labels"),
    _entry("multi-label-f1-micro", "multi_label:MultiLabelMicroF1", _SKLEARN, "F1 of sets of labels; over all labels together"),
    _entry("subset-accuracy", "multi_label:SubsetAccuracy", _SKLEARN, "share of examples whose set of labels is right"),
    _entry("map", "multi_label:MeanAveragePrecision", _SKLEARN, "mean over the labels of their average precision"),
    *(_entry(f"recall-at-{k}", f"retrieval:Recall{k}", _RETRIEVAL,
             f"share of inputs with a right text among the first {k} of all texts") for k in (1, 5, 10)),
    *(_entry(f"text-recall-at-{k}", f"retrieval:TextRecall{k}", _RETRIEVAL,
             f"share of texts with a right input among the first {k} of all inputs") for k in (1, 5, 10)),
    _entry("mrr", "retrieval:MeanReciprocalRank", "Voorhees 1999, https://trec.nist.gov/pubs/trec8/papers/qa_report.pdf",
           "mean reciprocal rank of the first right text of an input"),
    _entry("text-mrr", "retrieval:TextMeanReciprocalRank",
           "Voorhees 1999, https://trec.nist.gov/pubs/trec8/papers/qa_report.pdf",
           "mean reciprocal rank of the first right input of a text"),
)
# fmt: on


@hookimpl
def mmzoo_metrics() -> list[Entry]:
    return list(_METRICS)
