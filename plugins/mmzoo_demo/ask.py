"""A fresh process that knows a checkpoint folder and nothing else: ``python -m mmzoo_demo.ask``.

It reads ``{"folder", "images", "questions"}`` from stdin and writes a list of ``{"label", "score"}`` to stdout.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmzoo.api import MmzooError


def answers(model: Any, images: Sequence[str], questions: Sequence[str]) -> list[dict[str, Any]]:
    """What a model says, as plain data; JSON keeps every bit of a float."""
    said = model.predict(image=list(images), text=list(questions))
    return [{"label": prediction.label, "score": prediction.score} for prediction in said]


def in_fresh_process(folder: Path, images: Sequence[str], questions: Sequence[str]) -> list[dict[str, Any]]:
    """`answers` of the model in ``folder``, loaded by another Python.

    Raises:
        MmzooError: it failed; with the last thing that it said.
    """
    asked = json.dumps({"folder": str(folder.resolve()), "images": list(images), "questions": list(questions)})
    # -P: what lies in the user's folder must not stand in for a module of the same name.
    command = [sys.executable, "-P", "-m", "mmzoo_demo.ask"]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, encoding="utf-8", check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise MmzooError(f"{folder}: a fresh process could not use the model: {last[0]}")
    return json.loads(done.stdout)


def main() -> None:
    out, sys.stdout = (
        os.fdopen(os.dup(1), "w", encoding="utf-8"),
        sys.stderr,
    )  # a library that prints must not spoil the JSON
    from mmzoo.api import load

    asked = json.loads(sys.stdin.buffer.read())
    json.dump(answers(load(asked["folder"]), asked["images"], asked["questions"]), out)
    out.close()


if __name__ == "__main__":
    main()
