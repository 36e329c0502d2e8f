"""How good predictions are."""

from mmzoo.api import Entry, hookimpl


def _entry(name, target, summary, source):
    return Entry(
        "metric",
        name,
        target=f"mmzoo_metrics.{target}",
        summary=summary,
        license="Apache-2.0",
        source=source,
    )


@hookimpl
def mmzoo_metrics():
    sklearn = "as in scikit-learn, https://scikit-learn.org/stable/modules/model_evaluation.html"
    bleu = "Papineni et al. 2002, https://aclanthology.org/P02-1040; as in https://github.com/salaniz/pycocoevalcap"
    return [
        _entry("accuracy", "classification:Accuracy", "share of examples whose label is right", sklearn),
        _entry(
            "exact-match",
            "classification:ExactMatch",
            "share of texts equal to a reference but for case, spaces and a final full stop",
            "SQuAD, Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250, without its other normalisation",
        ),
        _entry("precision", "classification:Precision", "right among those given a label; mean over the labels", sklearn),
        _entry("recall", "classification:Recall", "found among those that have a label; mean over the labels", sklearn),
        _entry("f1", "classification:F1", "harmonic mean of precision and recall; mean over the labels", sklearn),
        *(
            _entry(
                f"bleu-{n}",
                f"caption:Bleu{n}",
                f"n-gram precision to n = {n} with brevity penalty, over the whole set; COCO's, without Java",
                bleu,
            )
            for n in (1, 2, 3, 4)
        ),
        _entry(
            "rouge-l",
            "caption:RougeL",
            "F-score of the longest common subsequence; COCO's, without Java",
            "Lin 2004, https://aclanthology.org/W04-1013; as in https://github.com/salaniz/pycocoevalcap",
        ),
        _entry(
            "cider-d",
            "caption:CiderD",
            "TF-IDF n-gram similarity to the references, 0 to 10; COCO's, without Java",
            "Vedantam et al. 2015, https://arxiv.org/abs/1411.5726; as in https://github.com/salaniz/pycocoevalcap",
        ),
        _entry(
            "meteor",
            "meteor:Meteor",
            "the official METEOR 1.5 (stems, synonyms, paraphrases); needs Java and mmzoo[meteor]",
            "Denkowski and Lavie 2014, https://aclanthology.org/W14-3348; as in https://github.com/salaniz/pycocoevalcap",
        ),
        _entry(
            "vqa-accuracy",
            "vqa:VQAAccuracy",
            "agreement with the ten answers to a question, normalised, as in the VQA challenge",
            "Antol et al. 2015, https://arxiv.org/abs/1505.00468; as in https://github.com/GT-Vision-Lab/VQA",
        ),
    ]
