"""Test plugins: the conformance kit, and every entry in its tiny form, offline.

    from mmzoo.testing import check_plugin

    def test_contract():
        check_plugin("mmzoo-foo")

`cases` lists the checks one by one, for ``pytest.mark.parametrize``. The contract is docs/plugin-contract.md.
"""

# Importing a file registers its checks, which run in this order.
# isort: off
from mmzoo.testing.contract import CHECKS, Case, Result, cases, check_plugin, no_network, results
from mmzoo.testing.small import PARTNERS, Sample, round_trip, tiny, tiny_parts
from mmzoo.testing import check_entry, check_kinds, check_parts, check_others  # noqa: F401

__all__ = [
    "CHECKS",
    "PARTNERS",
    "Case",
    "Result",
    "Sample",
    "cases",
    "check_plugin",
    "no_network",
    "results",
    "round_trip",
    "tiny",
    "tiny_parts",
]
