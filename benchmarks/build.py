"""``mmzoo.build("clip-prefix-gpt2")`` beside the two bare ``from_pretrained`` calls: seconds and peak memory.

Checkpoints of the real sizes with random weights lie in a Hugging Face cache that both sides read offline. Each
measurement is a new process, which imports everything before it starts the clock.
"""

from __future__ import annotations

import hashlib
import json
import re
import resource
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from benchmarks.common import Ratio, Settings, alternate, child

TARGET = 1.1
RECIPE = "clip-prefix-gpt2"
CLIP, GPT2 = "openai/clip-vit-base-patch32", "openai-community/gpt2"


def run(settings: Settings) -> list[Ratio]:
    with tempfile.TemporaryDirectory() if settings.work is None else nullcontext(settings.work) as work:
        cache = Path(work, "hub")
        for name in (CLIP, GPT2):
            _fill(cache, name)
        env = {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}

        def measure(side: str) -> dict[str, float]:
            return json.loads(child("-m", "benchmarks.build", side, env=env).splitlines()[-1])

        ours, theirs = alternate(lambda: measure("mmzoo"), lambda: measure("bare"), settings.repeats, warm=True)
    return [
        Ratio(
            f"build: {what} of mmzoo.build / two from_pretrained",
            [m[key] for m in ours],
            [m[key] for m in theirs],
            unit,
            TARGET,
            sides=("mmzoo", "transformers"),
        )
        for what, key, unit in (("time", "seconds", "s"), ("peak memory", "megabytes", "MB"))
    ]


def _fill(cache: Path, name: str) -> None:
    """Put a repository into a Hugging Face cache, as a download would."""
    from tests.hub import make

    commit = hashlib.sha1(name.encode()).hexdigest()
    repository = cache / f"models--{name.replace('/', '--')}"
    reference = repository / "refs" / "main"
    if reference.exists():
        return
    make(repository / "snapshots" / commit, name, real_size=True)
    reference.parent.mkdir(parents=True)
    reference.write_text(commit, encoding="utf-8")


# In the child


def _imports() -> None:
    """What either side needs, so that neither pays for imports on the clock."""
    import mmzoo_transformers.vision  # noqa: F401
    from transformers import (  # noqa: F401
        AutoImageProcessor,
        AutoTokenizer,
        CLIPImageProcessor,
        CLIPVisionModelWithProjection,
        GPT2LMHeadModel,
    )

    from mmzoo.build import read_recipe
    from mmzoo.resolve import resolve

    for kind, part in read_recipe(RECIPE).parts().items():
        resolve(kind, part)


def _mmzoo() -> Any:
    import mmzoo

    return mmzoo.build(RECIPE)


def _bare() -> Any:
    from transformers import CLIPVisionModelWithProjection, GPT2LMHeadModel

    return CLIPVisionModelWithProjection.from_pretrained(CLIP), GPT2LMHeadModel.from_pretrained(GPT2)


def _status(key: str) -> float | None:
    """A field of /proc/self/status in megabytes, None where there is no such thing."""
    try:
        found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    except OSError:
        return None
    return int(found[1]) / 1e3 if found else None


def _peak() -> float:
    """The most memory that this process has held, in megabytes. Not ``ru_maxrss`` where there is better: on Linux that
    begins with the parent's."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return _status("VmHWM") or peak / (1e6 if sys.platform == "darwin" else 1e3)


def _measure(side: str) -> dict[str, float]:
    _imports()
    before = _status("VmRSS") or _peak()
    started = time.perf_counter()
    model = {"mmzoo": _mmzoo, "bare": _bare}[side]()
    seconds = time.perf_counter() - started
    assert model is not None
    return {"seconds": seconds, "megabytes": _peak() - before}


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1])))
