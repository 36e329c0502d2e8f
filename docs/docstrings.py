"""Count docstrings that do not open with a verb, as PEP 257 asks. ``python docs/docstrings.py`` lists them.

``python docs/generate.py --check`` fails if their share is `LIMIT` or more. Add a verb that is missing from `VERBS`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("mmzoo", "plugins", "examples", "benchmarks", "experiments", "docs")
LIMIT = 0.02
VERBS = frozenset(
    """
    accept accumulate adapt add align allow answer append apply arrange ask assemble attach attend average begin bind blank
    bring build cache calculate call cast catch change check choose clip close collate collect combine commit compare
    complete compose compute concatenate configure connect construct contain convert copy count create cut decide decode
    default define delete derive describe detach detect diagnose disable discover display divide download draw drive embed
    enable encode end enter erase estimate evaluate exclude execute expand expect explain export expose express extract fail
    fetch fill filter find finish fit flatten follow forget format forward freeze fuse gate gather generate get give group
    guess handle hash hide hold identify ignore implement import include index inherit initialise insert inspect install
    integrate iterate join keep label lay learn leave limit link list listen load locate lock log look loop make map mark
    mask match measure meet merge mix move multiply name normalise note offer omit open order pack pad pair parse pass patch
    permute pick place plan play pool predict prepare present print probe process produce project provide prune publish pull
    push put quantise query raise rank reach read rebuild recognise recompute record reduce refuse register reject release reload
    remember remove rename render reorder repeat replace report represent request require rerun reserve reset reshape resize
    resolve restore restrict resume retry return reuse rewrite round run sample sanitise save say scale scan score search
    see select send serialise serve set share shift shorten show shuffle sign skip slice sort spell split stack stage standardise
    start state stop store stream strip sum summarise supply swap take tell test tie tile time track train transfer
    transform translate truncate try turn undo unload unpack unwrap update upload use validate verify visit wait walk warn
    watch weigh weight wrap write yield
    """.split()  # noqa: SIM905 - one word after another is easier to extend
)


def docstrings() -> Iterator[tuple[str, str]]:
    """Yield the place of each docstring, as ``path:line name``, and its text."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if "tests" in path.relative_to(ROOT).parts:
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                documented = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module)
                if documented and (text := ast.get_docstring(node)):
                    yield f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)} {getattr(node, 'name', '(module)')}", text


def opens_with_verb(text: str) -> bool:
    """Return whether the first word of a docstring is one of `VERBS`, in its base form."""
    word = re.match(r"[A-Z][a-z]+(?=[\s,.:;(])", text)
    return word is not None and word[0].lower() in VERBS


def check(*, listed: bool = True) -> bool:
    """Print how many docstrings do not open with a verb, and each of them if ``listed``; return whether they are few enough."""
    texts = list(docstrings())
    others = [(place, text) for place, text in texts if not opens_with_verb(text)]
    for place, text in others if listed else ():
        print(f"{place}: {text.splitlines()[0][:100]}")
    share = len(others) / len(texts)
    print(f"{len(others)} of {len(texts)} docstrings ({share:.1%}) do not open with a verb; the limit is {LIMIT:.0%}")
    return share < LIMIT


if __name__ == "__main__":
    raise SystemExit(not check())
