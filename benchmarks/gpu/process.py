"""Run one side of a measurement in a process of its own, so that its memory is its own and an error on the device ends only it.

The process is ``python -m benchmarks.gpu.process MODULE:CLASS OPTIONS``. It makes the class with the options, and for each line
``[method, options]`` on its standard input it calls the method and answers with a line of JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from typing import Any

from benchmarks.common import ROOT

SHOWN = 1500  # characters of a process's last words


class Process:
    """Call the methods of an object in another process; ``with`` ends it.

    Args:
        target: ``module:class``.
        deadline: the time (`time.monotonic`) at which the process is killed.
        options: of the class, as JSON data.
    """

    def __init__(self, target: str, deadline: float, **options: Any) -> None:
        self.errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 (closed in __exit__)
        self.running = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu.process", target, json.dumps(options)],
            cwd=ROOT,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )
        self.late = False
        self.timer = threading.Timer(max(0.0, deadline - time.monotonic()), self._kill)
        self.timer.daemon = True
        self.timer.start()

    def _kill(self) -> None:
        self.late = True
        self.running.kill()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: Any) -> None:
        self.timer.cancel()
        self.running.kill()
        self.running.communicate()
        self.errors.close()

    def call(self, method: str, **options: Any) -> Any:
        """Return what the method returns, as JSON data.

        Raises:
            RuntimeError: it raised an error, the process ended, or there was no more time.
        """
        assert self.running.stdin is not None
        assert self.running.stdout is not None
        with suppress(OSError):  # it has ended; its last words say why
            self.running.stdin.write(json.dumps([method, options]) + "\n")
            self.running.stdin.flush()
        line = self.running.stdout.readline()
        if self.late:
            raise RuntimeError(f"{method}: there was no more time")
        if not line:
            self.running.wait()
            self.errors.seek(0)
            raise RuntimeError(f"{method}: its process ended ({self.running.returncode}):\n{self.errors.read()[-SHOWN:].strip()}")
        return json.loads(line)


def main() -> None:
    """Serve the calls of the process that started this one."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    name, options = sys.argv[1:]
    module, _, cls = name.partition(":")
    target = getattr(importlib.import_module(module), cls)(**json.loads(options))
    for line in sys.stdin:
        method, given = json.loads(line)
        print(json.dumps(getattr(target, method)(**given)), file=answers, flush=True)


if __name__ == "__main__":
    main()
