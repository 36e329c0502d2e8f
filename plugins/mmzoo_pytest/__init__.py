"""Add markers and fixtures to pytest in every project where mmzoo is installed. Nothing of mmzoo is imported before a test needs
it.

A test with the argument ``mmzoo_case`` runs once for each check and entry of the plugins that its marker names:

    @pytest.mark.mmzoo_plugin("mmzoo-foo") def test_contract(mmzoo_case): mmzoo_case.run()
"""

import pytest


def pytest_configure(config):
    config.addinivalue_line("markers", "mmzoo_plugin(distribution): hold a plugin to mmzoo's contract, an item a check")


def pytest_generate_tests(metafunc):
    if "mmzoo_case" not in metafunc.fixturenames:
        return
    from mmzoo.testing import cases

    names = [name for marker in metafunc.definition.iter_markers("mmzoo_plugin") for name in marker.args]
    if not names:
        raise pytest.UsageError(f"{metafunc.definition.nodeid}: mmzoo_case needs @pytest.mark.mmzoo_plugin('mmzoo-foo')")
    metafunc.parametrize("mmzoo_case", [case for name in names for case in cases(name)], ids=str)


@pytest.fixture
def mmzoo_offline():
    """Disable the network and provide a cache for one test."""
    from mmzoo.testing import no_network
    from mmzoo.testing.contract import own_cache

    with no_network(), own_cache() as folder:
        yield folder
