"""Follow docs/write-a-plugin.md: write its files, run its commands, and compare their output.

Commands run in this process where they can, since importing torch takes seconds. Instead of ``pip install``, the folder is put
on the path with its metadata, which needs no network and does not change the environment.
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

from command_line import run

from mmzoo.registry import manager

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "write-a-plugin.md"
_FENCE = re.compile(r'^```(\w+)(?: title="([^"]+)")?( excerpt)?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """Hold a fenced block; ``title`` is the file that it shows."""

    language: str
    title: str
    excerpt: bool
    text: str


def blocks(page: str) -> list[Block]:
    return [Block(language, title, bool(excerpt), text) for language, title, excerpt, text in _FENCE.findall(page)]


class PageFollower:
    """Do what the page says, starting in an empty ``folder``."""

    def __init__(self, folder, monkeypatch):
        self.cwd, self.monkeypatch, self.commands = folder, monkeypatch, []

    def follow(self, block):
        if block.title:
            self.write(block)
        elif block.language == "console":
            for step in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
                command, _, expected = step.partition("\n")
                self.type(command, expected)

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
        assert text != before, f"{block.title} already has this content"
        path.write_text(text)
        self.forget()

    def type(self, command, expected):
        program, *arguments = shlex.split(command)
        printed = getattr(self, f"_{program}")(arguments)
        self.commands.append(command)
        if expected:
            flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
            is_equal = doctest.OutputChecker().check_output(expected.strip(), printed.strip(), flags)
            assert is_equal, f"$ {command}\nthe page shows:\n{expected}\nit prints:\n{printed}"

    def forget(self):
        """Unload the plugin's modules: for a user of the page, each command is a new process."""
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
    """Return the text of each file of a package, by its path, without the output of Python, its tools or training."""
    generated = {"__pycache__", "mmzoo_film.egg-info", ".pytest_cache", ".ruff_cache", "build", "dist", "first-try"}
    paths = [path for path in folder.rglob("*") if path.is_file()]
    by_name = {path.relative_to(folder): path for path in paths}
    return {str(name): path.read_text() for name, path in by_name.items() if not generated & set(name.parts)}
