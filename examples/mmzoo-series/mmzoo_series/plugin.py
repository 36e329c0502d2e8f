"""Register what mmzoo-series provides, as data. This module imports no torch."""

from mmzoo.api import Entry, hookimpl

MMZOO_API = "1.0"


@hookimpl
def mmzoo_encoders():
    target, summary = "mmzoo_series.encoder:PatchSeries", "from scratch: pieces of a series, each through two linear layers"
    source = "the patches of PatchTST, Nie et al. 2023, https://arxiv.org/abs/2211.14730"
    return [Entry("encoder", "patch-series", target, summary, "series", "Apache-2.0", source, tiny={"dim": 16})]


@hookimpl
def mmzoo_datasets():
    target, summary = "mmzoo_series.trends:Trends", "series that rise, fall or swing, generated on demand"
    return [Entry("dataset", "trends", target, summary, "series", "Apache-2.0", "generated here", tiny={"count": 8})]
