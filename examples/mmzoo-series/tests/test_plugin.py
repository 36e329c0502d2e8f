"""Run each check of the contract with mmzoo on each entry, then test what is special to series."""

import numpy as np
import pytest
import torch
from mmzoo_series.encoder import PatchSeries, standardise
from mmzoo_series.reader import SeriesReader
from torch.nn.utils.rnn import pad_sequence

from mmzoo import testing
from mmzoo.api import BadInput


@pytest.mark.parametrize("case", testing.cases("mmzoo-series"), ids=str)
def test_contract(case):
    case.run()


def test_padding_and_company_change_nothing():
    encoder = PatchSeries(PatchSeries.Options(patch=4))
    series = [standardise(np.arange(steps, dtype=np.float32) % 3) for steps in (5, 12, 1)]
    lengths = torch.tensor([len(each) for each in series])
    together = encoder(pad_sequence(series, batch_first=True), lengths)
    for i, each in enumerate(series):
        alone = encoder(each[None], lengths[i : i + 1])
        assert int(together.mask[i].sum()) == alone.tokens.shape[1] == -(-len(each) // 4)
        torch.testing.assert_close(together.tokens[i, : alone.tokens.shape[1]], alone.tokens[0])
        torch.testing.assert_close(together.pooled[i], alone.pooled[0])


def test_a_series_is_the_same_from_everywhere(tmp_path):
    np.save(path := tmp_path / "a.npy", values := np.array([1.0, 2.0, 4.0], np.float32))
    for source in (values, torch.tensor(values), path, path.as_uri(), path.read_bytes()):
        np.testing.assert_array_equal(SeriesReader().read(source), values)


@pytest.mark.parametrize("source", ["nowhere.npy", b"no numbers", np.zeros(0), np.array([np.nan]), np.zeros((2, 2)), {"a": 1}])
def test_what_is_no_series_is_refused(source):
    with pytest.raises(BadInput, match="series"):
        SeriesReader().read(source)
