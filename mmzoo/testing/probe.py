"""Measure what importing a plugin costs and does.

`run` passes this file to a fresh Python as ``python -c``, so it imports only the standard library; `main` runs in that process.
"""

import importlib
import json
import locale
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

HEAVY = ("torch", "torchvision", "transformers", "timm", "open_clip", "datasets", "tensorflow", "jax")
NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")
WRITES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate")
SECONDS = 120
# Variables that set the cache folders of libraries.
CACHES = (
    "MMZOO_CACHE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "HF_HOME", "MPLCONFIGDIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR",
    "TMPDIR", "TEMP", "TMP",
)  # fmt: skip


def run(modules: list[str], targets: list[str]) -> dict[str, Any]:
    """Import ``modules``, then ``targets``, in a fresh process without network, bytecode files or home folder.

    The result has ``seconds`` by module, ``heavy`` (large libraries that ``modules`` imported), ``events`` (what was written or
    connected to), ``changed`` (what ``modules`` changed in the process) and ``error``, None if all could be imported.
    """
    from mmzoo.registry.manager import plugin_manager  # the child, which runs this file, must not import it

    with tempfile.TemporaryDirectory(prefix="mmzoo-probe-") as folder:
        cache, home = (os.path.join(folder, name) for name in ("cache", "home"))
        os.mkdir(cache)
        os.mkdir(home)
        environment = {
            **plugin_manager().environment(),
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": home,
            **dict.fromkeys(CACHES, cache),
        }
        asked = json.dumps({"modules": modules, "targets": targets, "cache": cache})
        command = [sys.executable, "-c", Path(__file__).read_text(encoding="utf-8"), asked]
        options: dict[str, Any] = {"capture_output": True, "text": True, "env": environment, "cwd": home, "timeout": SECONDS}
        try:
            done = subprocess.run(command, **options)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the import does not end within {SECONDS} s") from None
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip() or done.stdout.strip() or "nothing was printed").splitlines()[-1]
        raise AssertionError(f"the process that imports it ended with {done.returncode}: {last}") from None


def main() -> None:
    asked, out = json.loads(sys.argv[1]), sys.stdout  # before a module can replace it
    importlib.import_module("mmzoo")
    events = watch(asked["cache"])
    seconds, heavy, changed, error, before = {}, [], [], None, process()
    try:
        for name in asked["modules"]:
            started = time.perf_counter()
            importlib.import_module(name)
            seconds[name] = time.perf_counter() - started
        heavy = [name for name in HEAVY if name in sys.modules]
        after = process()
        changed = [name for name in before if after[name] != before[name]]
        for name in asked["targets"]:
            importlib.import_module(name)
    except BaseException as raised:  # a plugin's module may raise anything
        error = f"{type(raised).__name__}: {raised}"
    report = {"seconds": seconds, "heavy": heavy, "events": events[:20], "changed": changed, "error": error}
    print(f"\n{json.dumps(report)}", file=out, flush=True)
    os._exit(0)  # ends threads that the modules left running


def process() -> dict[str, Any]:
    """Return the state of the process that a plugin must not change, by name."""
    return {
        "the environment": dict(os.environ),
        "the working directory": os.getcwd(),
        "sys.path": list(sys.path),
        "the standard streams": (sys.stdin, sys.stdout, sys.stderr),
        "the recursion limit": sys.getrecursionlimit(),
        "the locale": locale.setlocale(locale.LC_ALL),
        "the handlers of signals": [signal.getsignal(number) for number in sorted(signal.valid_signals())],
        "the state of random": random.getstate(),
        "the threads": threading.enumerate(),
    }


def watch(cache: str) -> list[str]:
    """Return a list to which each write outside ``cache`` and each use of the network, which fails, is added from now on."""
    events: list[str] = []

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in NETWORK:
            address = arguments[1] if event == "socket.connect" else arguments[0]
            events.append(f"{event} {address!r}")
            raise OSError("the network is blocked in this test")
        writes = event in WRITES and (event != "open" or opens_for_writing(arguments[1], arguments[2]))
        if writes and isinstance(arguments[0], str | bytes | os.PathLike):
            path = os.path.abspath(os.fsdecode(arguments[0]))
            if not path.startswith((cache, "/dev/", "/proc/")):
                events.append(f"{event} {path}")

    sys.addaudithook(hook)
    return events


def opens_for_writing(mode: Any, flags: Any) -> bool:
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


if __name__ == "__main__":
    main()
