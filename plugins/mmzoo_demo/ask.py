"""Answer questions in a fresh process that gets only a checkpoint folder: ``python -m mmzoo_demo.ask``.

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
    """Return a model's predictions as plain data; JSON keeps every bit of a float."""
    predictions = model.predict(image=list(images), text=list(questions), scores=True)
    return [{"label": prediction.label, "score": prediction.score} for prediction in predictions]


def in_fresh_process(folder: Path, images: Sequence[str], questions: Sequence[str]) -> list[dict[str, Any]]:
    """Return the `answers` of the model in ``folder``, loaded by another Python process.

    Raises:
        MmzooError: it failed; with the last line of its output.
    """
    request = json.dumps({"folder": str(folder.resolve()), "images": list(images), "questions": list(questions)})
    # -P: a file in the user's folder must not replace a module of the same name.
    command = [sys.executable, "-P", "-m", "mmzoo_demo.ask"]
    done = subprocess.run(command, input=request, capture_output=True, text=True, encoding="utf-8", check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise MmzooError(f"{folder}: a fresh process could not use the model: {last[0]}")
    return json.loads(done.stdout)


def main() -> None:
    """Read a request from stdin and write the answers to stdout."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    sys.stdout = sys.stderr  # what a library prints must not be in the JSON
    from mmzoo.api import load

    request = json.loads(sys.stdin.buffer.read())
    json.dump(answers(load(request["folder"]), request["images"], request["questions"]), out)
    out.close()


if __name__ == "__main__":
    main()
