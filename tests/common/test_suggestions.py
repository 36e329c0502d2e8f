"""A misspelt name is answered with the names that are like it."""

from mmzoo.common.suggestions import close_names, did_you_mean


def test_the_most_similar_comes_first():
    known = ["projector", "prefix-mlp", "prefix-linear", "gated"]
    assert close_names("prefix-mpl", known)[0] == "prefix-mlp"
    assert did_you_mean("prefix-mpl", known, 1) == "did you mean 'prefix-mlp'?"
    assert did_you_mean("zzz", known) == ""
