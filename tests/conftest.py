"""What the tests share: small models, quick, and no network."""

import json
import os
import sys
import tempfile
from importlib.metadata import entry_points
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: a second thread costs more than it gives
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Other plugins that are installed load in no test, nor while tests are collected; those that a test installs do.
os.environ["MMZOO_CONFIG"] = str(Path(tempfile.mkdtemp(prefix="mmzoo-tests-")) / "config.json")
installed = {point.dist.name for point in entry_points(group="mmzoo") if point.dist} - {"mmzoo"}
Path(os.environ["MMZOO_CONFIG"]).write_text(json.dumps({"disabled": sorted(installed)}))

import pytest  # noqa: E402

from mmzoo.testing import Sample, tiny  # noqa: E402


@pytest.fixture
def sample():
    return Sample()


@pytest.fixture(scope="session")
def classifier():
    """A tiny recipe that classifies."""
    return tiny("cnn-product-lstm")


@pytest.fixture(scope="session")
def writer():
    """A tiny recipe that generates."""
    return tiny("cnn-prefix-gpt")


QUICK = {"max_steps": 4, "batch_size": 4, "log_every": 1, "precision": "fp32"}


@pytest.fixture
def quick():
    return dict(QUICK)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """No test reads or writes the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMZOO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def drawings(tmp_path_factory):
    """A cache with OpenMoji's pictures, which take seconds to draw."""
    return tmp_path_factory.mktemp("drawings")


@pytest.fixture(autouse=True)
def forgotten():
    """Modules that a test wrote are imported anew by the next, which may write others of the same names."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        where = getattr(sys.modules[name], "__file__", None)
        if where is not None and "pytest-of-" in where:
            del sys.modules[name]
