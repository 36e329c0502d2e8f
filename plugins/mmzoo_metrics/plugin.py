"""How good predictions are."""

import mmzoo


def _entry(name, attribute, summary, source):
    return mmzoo.Entry(
        "metric",
        name,
        target=f"mmzoo_metrics.classification:{attribute}",
        summary=summary,
        license="Apache-2.0",
        source=source,
    )


@mmzoo.hookimpl
def mmzoo_metrics():
    sklearn = "as in scikit-learn, https://scikit-learn.org/stable/modules/model_evaluation.html"
    return [
        _entry("accuracy", "Accuracy", "share of examples whose label is right", sklearn),
        _entry(
            "exact-match",
            "ExactMatch",
            "share of texts equal to a reference but for case, spaces and a final full stop",
            "SQuAD, Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250, without its other normalisation",
        ),
        _entry("precision", "Precision", "right among those given a label; mean over the labels", sklearn),
        _entry("recall", "Recall", "found among those that have a label; mean over the labels", sklearn),
        _entry("f1", "F1", "harmonic mean of precision and recall; mean over the labels", sklearn),
    ]
