"""What many plugins cost: ``mmzoo list`` with 500 of them and 10,000 entries, and finding a model's parts beside ten plugins."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from benchmarks.common import ROOT, Ratio, Settings, alternate, child

MANY, FEW, EACH = 500, 10, 20
LIST_SECONDS = 1.0
FIND = """
import time
from mmzoo.recipes.reading import read_recipe
from mmzoo.recipes.resolve import resolve
def find():
    for kind, part in read_recipe("cnn-product-lstm", encoder="stranger3-encoder-3", pretrained=False).parts().items():
        resolve(kind, part)
find()
best = []
for _ in range(20):
    started = time.perf_counter()
    for _ in range(50):
        find()
    best.append((time.perf_counter() - started) / 50)
print(min(best))
"""


def run(settings: Settings) -> list[Ratio]:
    with tempfile.TemporaryDirectory() as folder:
        many, few = (_install(Path(folder) / str(count), count) for count in (MANY, FEW))
        (listed,) = alternate(lambda: _seconds(many), repeats=max(5, settings.repeats), warm=True)
        found = alternate(
            lambda: float(child("-c", FIND, env=_env(many))),
            lambda: float(child("-c", FIND, env=_env(few))),
            repeats=3,
        )
    return [
        Ratio(
            f"plugins: mmzoo list, {MANY} plugins and {MANY * EACH} entries / {LIST_SECONDS:g} s",
            listed,
            [LIST_SECONDS] * len(listed),
            "s",
            1.0,
            sides=("mmzoo list", "limit"),
        ),
        Ratio(
            f"plugins: finding the parts of a model, {MANY} plugins / {FEW}",
            *found,
            "s",
            1.1,
            sides=(f"{MANY} plugins", f"{FEW} plugins"),
        ),
    ]


def _install(folder: Path, count: int) -> Path:
    """``count`` distributions, as pip leaves them, each with a package that brings `EACH` encoders."""
    for i in range(count):
        package, info = folder / f"mmzoo_stranger{i}", folder / f"mmzoo_stranger{i}-1.0.dist-info"
        for made in (package, info):
            made.mkdir(parents=True)
        (package / "__init__.py").write_text("")
        (package / "plugin.py").write_text(
            "import mmzoo\n\nMMZOO_API = '1.0'\n\n\n@mmzoo.hookimpl\ndef mmzoo_encoders():\n    return [\n"
            f"        mmzoo.Entry('encoder', f'stranger{i}-encoder-{{n}}', 'mmzoo_scratch.cnn:CNN', summary='Encoder {{n}}')\n"
            f"        for n in range({EACH})\n    ]\n"
        )
        about = f"Metadata-Version: 2.4\nName: mmzoo-stranger{i}\nVersion: 1.0\nRequires-Dist: mmzoo>=0.1\n"
        (info / "METADATA").write_text(about)
        (info / "entry_points.txt").write_text(f"[mmzoo]\nstranger{i} = mmzoo_stranger{i}.plugin\n")
    return folder


def _env(folder: Path) -> dict[str, str]:
    """Compiled modules are kept, as an installation has them; the first, uncounted turn compiles them."""
    path = os.pathsep.join([str(folder), str(ROOT), str(ROOT / "plugins")])
    return {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(folder.parent / "compiled")}


def _seconds(folder: Path) -> float:
    started = time.perf_counter()
    rows = child("-m", "mmzoo", "list", env=_env(folder)).count("\n")
    seconds = time.perf_counter() - started
    if rows < MANY * EACH:
        raise RuntimeError(f"mmzoo list printed {rows} lines")
    return seconds
