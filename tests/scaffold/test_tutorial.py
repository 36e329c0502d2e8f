"""Check that docs/write-a-plugin.md works as written, and that it makes examples/mmzoo-film."""

import importlib.util
import json
import re

import pytest
from tutorial import PAGE, ROOT, PageFollower, blocks, files

from mmzoo.interfaces.kinds import HOOKS
from mmzoo.registry.manager import plugin_manager

EXAMPLE = ROOT / "examples" / "mmzoo-film"
OF_THE_EXAMPLE = {"README.md", "CARD.md", "record/seed-0.json", "record/seed-1.json"}  # the page does not write them


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """Follow the page to its end."""
    if importlib.util.find_spec("mmzoo_film"):
        pytest.skip("mmzoo-film is installed here, and the tutorial writes it anew: pip uninstall mmzoo-film")
    with pytest.MonkeyPatch.context() as monkeypatch:
        follower = PageFollower(tmp_path_factory.mktemp("tutorial"), monkeypatch)
        for block in blocks(PAGE.read_text()):
            follower.follow(block)
        yield follower
    follower.forget()
    assert "mmzoo-film" not in {entry.plugin for entry in plugin_manager().registry.entries()}, "other tests would see it"


def test_every_command_prints_what_the_page_shows(followed):
    assert "pytest -q" in followed.commands
    assert sum(command.startswith("mmzoo ") for command in followed.commands) >= 6


def test_it_makes_the_example(followed):
    """Where they differ, copy the difference to the page or to the example."""
    written, example = files(followed.cwd), files(EXAMPLE)
    assert set(written) | OF_THE_EXAMPLE == set(example)
    assert [name for name in written if written[name] != example[name] and name not in OF_THE_EXAMPLE] == []


def test_every_fence_is_understood():
    fences = blocks(PAGE.read_text())
    assert 2 * len(fences) == sum(line.startswith("```") for line in PAGE.read_text().splitlines())
    assert {block.language for block in fences if not block.title} == {"console", "sh"}


def test_the_results_of_the_example_are_recorded():
    readme, card = (EXAMPLE / "README.md").read_text(), (EXAMPLE / "CARD.md").read_text()
    for seed in (0, 1):
        record = json.loads((EXAMPLE / "record" / f"seed-{seed}.json").read_text())
        assert record["training"]["seed"] == seed
        measured = record["evaluations"][-1]
        assert (measured["dataset"], measured["split"], measured["examples"]) == ("easy-vqa", "test", 9673)
        scores = [measured["scores"], measured["controls"]["shuffled"], measured["controls"]["blanked"]]
        cells = [f"{s['accuracy']['value']:.4f} [{s['accuracy']['low']:.4f}, {s['accuracy']['high']:.4f}]" for s in scores]
        row = " | ".join(cells)
        assert f"| {seed} | {row} |" in readme
        assert seed > 0 or f"| accuracy | {row} |" in card
        assert seed > 0 or scores[0]["accuracy"]["value"] >= 0.999


def test_every_link_has_a_target():
    text = PAGE.read_text()
    links = re.findall(r"\]\((?!https:)([^)#]*)#?([^)]*)\)", text)
    assert links
    for name, anchor in links:
        path = PAGE.parent / name if name else PAGE
        assert path.exists(), name
        headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE) if anchor else []
        assert not anchor or anchor in {re.sub(r"[^\w -]", "", line).lower().replace(" ", "-") for line in headings}, anchor


def test_other_kinds_have_a_row_each():
    text = PAGE.read_text().partition("## Other kinds")[2]
    for hook, kind in HOOKS.items():
        assert f"| `{kind}` | `{hook}` |" in text
