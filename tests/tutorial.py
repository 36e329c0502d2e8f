"""Follows docs/write-a-plugin.md: writes its files, runs its commands, and compares what they print.

In this process where it can be, since importing torch takes seconds. ``pip install`` puts the folder on the path with its
metadata instead: it needs no network and leaves no trace in the environment.
"""

import doctest
import importlib
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from test_cli import run

from mmzoo.registry import manager

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "write-a-plugin.md"
_FENCE = re.compile(r'^```(\w+)(?: title="([^"]+)")?( excerpt)?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: ``title`` is the file that it stands in."""

    language: str
    title: str
    excerpt: bool
    text: str


def blocks(page: str) -> list[Block]:
    return [Block(language, title, bool(excerpt), text) for language, title, excerpt, text in _FENCE.findall(page)]


class Reader:
    """Someone who does what the page says, beginning in an empty ``folder``."""

    def __init__(self, folder, monkeypatch):
        self.cwd, self.monkeypatch, self.commands = folder, monkeypatch, []

    def follow(self, block):
        if block.title:
            self.write(block)
        elif block.language == "console":
            for step in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
                command, _, shown = step.partition("\n")
                self.type(command, shown)

    def write(self, block):
        path = self.cwd / block.title
        before = path.read_text()
        if block.excerpt:
            assert block.text in before, f"{block.title} does not hold:\n{block.text}"
            return
        text = block.text
        if block.language == "diff":
            removed, added = ("".join(line[1:] for line in text.splitlines(True) if line[0] == sign) for sign in "-+")
            assert before.count(removed) == 1, f"{block.title} does not hold once:\n{removed}"
            text = before.replace(removed, added)
        assert text != before, f"{block.title} is so already"
        path.write_text(text)
        self.forget()

    def type(self, command, shown):
        program, *arguments = shlex.split(command)
        printed = getattr(self, f"_{program}")(arguments)
        self.commands.append(command)
        if shown:
            flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
            same = doctest.OutputChecker().check_output(shown.strip(), printed.strip(), flags)
            assert same, f"$ {command}\nthe page shows:\n{shown}\nit prints:\n{printed}"

    def forget(self):
        """A command is a new process to a reader; here, what was imported of the plugin is dropped."""
        for name in [name for name in sys.modules if name.partition(".")[0] == "mmzoo_film"]:
            del sys.modules[name]
        importlib.invalidate_caches()
        manager.reset()

    def _cd(self, arguments):
        self.cwd /= arguments[0]

    def _mmzoo(self, arguments):
        return run(*arguments, cwd=self.cwd).stdout

    def _pip(self, arguments):
        assert arguments[:2] == ["install", "-e"]
        code = "from setuptools import setup; setup()"
        self._process(sys.executable, "-c", code, "-q", "egg_info")
        self.monkeypatch.syspath_prepend(str(self.cwd))
        self.monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        self.forget()

    def _pytest(self, arguments):
        return self._process(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments)

    def _process(self, *words):
        done = subprocess.run(words, cwd=self.cwd, capture_output=True, text=True)
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
        return done.stdout


def files(folder):
    """The text of each file of a package, by its path, without what Python, its tools or training leave."""
    left = {"__pycache__", "mmzoo_film.egg-info", ".pytest_cache", ".ruff_cache", "build", "dist", "first-try"}
    paths = [path for path in folder.rglob("*") if path.is_file()]
    inside = {path.relative_to(folder): path for path in paths}
    return {str(name): path.read_text() for name, path in inside.items() if not left & set(name.parts)}
