"""Compare ``mmzoo.build("clip-prefix-gpt2")`` with plain code: seconds and peak memory until every weight is in memory.

There are two plain sides: the two ``from_pretrained`` calls alone, which do not make a model yet, and the same model by hand:
these calls, the image processor, and the mapper between the two. All sides read checkpoints of the real sizes with random
weights from a local Hugging Face cache. Each measurement is a new process. "Call" starts the clock after all imports and counts
the memory from there; "process" covers the whole process.

Each side reads every weight once while the clock runs, since loading only maps the files.
"""

from __future__ import annotations

import hashlib
import json
import re
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from benchmarks.common import Ratio, Settings, alternate, child

TARGET = 1.1
RECIPE = "clip-prefix-gpt2"
CLIP, GPT2 = "openai/clip-vit-base-patch32", "openai-community/gpt2"
MMZOO, BY_HAND, BARE = "mmzoo", "by hand", "two from_pretrained"


def run(settings: Settings) -> list[Ratio]:
    with tempfile.TemporaryDirectory() if settings.work is None else nullcontext(settings.work) as work:
        cache = Path(work, "hub")
        for name in (CLIP, GPT2):
            _fill(cache, name)
        env = {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}

        def measure(side: str) -> Callable[[], dict[str, float]]:
            def once() -> dict[str, float]:
                started = time.perf_counter()
                line = child("-m", "benchmarks.build", side, env=env).splitlines()[-1]
                return {"process_seconds": time.perf_counter() - started, **json.loads(line)}

            return once

        sides = (MMZOO, BY_HAND, BARE)
        results = alternate(*(measure(side) for side in sides), repeats=settings.repeats, warm=True)
    measured = dict(zip(sides, results, strict=True))
    return [
        Ratio(
            f"build: {what}, {MMZOO} / {other}",
            [one[key] for one in measured[MMZOO]],
            [one[key] for one in measured[other]],
            unit,
            TARGET,
            sides=(MMZOO, other),
        )
        for other in (BY_HAND, BARE)
        for what, key, unit in (
            ("process time", "process_seconds", "s"),
            ("process memory", "process_megabytes", "MB"),
            ("call time", "call_seconds", "s"),
            ("call memory", "call_megabytes", "MB"),
        )
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


# In the child process. Each side imports what it needs and returns a function that builds the models.


def _mmzoo() -> Callable[[], Iterable[Any]]:
    # Building imports these by name, once it has read the configurations.
    from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection, GPT2LMHeadModel  # noqa: F401

    import mmzoo
    from mmzoo.recipes.reading import read_recipe
    from mmzoo.recipes.resolve import resolve

    for kind, part in read_recipe(RECIPE).parts().items():
        resolve(kind, part)
    return lambda: [mmzoo.build(RECIPE)]


def _by_hand() -> Callable[[], Iterable[Any]]:
    from torch import nn
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPVisionModelWithProjection, GPT2LMHeadModel  # noqa: F401

    def build() -> Iterable[Any]:
        vision = CLIPVisionModelWithProjection.from_pretrained(CLIP).requires_grad_(False)
        text = GPT2LMHeadModel.from_pretrained(GPT2).requires_grad_(False)
        CLIPImageProcessor.from_pretrained(CLIP)
        width = 10 * text.config.n_embd
        mapper = nn.Sequential(nn.Linear(vision.config.projection_dim, width // 2), nn.Tanh(), nn.Linear(width // 2, width))
        return vision, text, mapper

    return build


def _bare() -> Callable[[], Iterable[Any]]:
    from transformers import CLIPVisionModelWithProjection, GPT2LMHeadModel

    return lambda: (CLIPVisionModelWithProjection.from_pretrained(CLIP), GPT2LMHeadModel.from_pretrained(GPT2))


def _read(model: Any) -> float:
    """Read a value of each memory page of each weight, and return their sum."""
    return sum(float(parameter.detach().view(-1)[::512].sum()) for parameter in model.parameters())


def _status(key: str) -> float | None:
    """Return a field of /proc/self/status in megabytes, or None where the system has none."""
    try:
        match = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    except OSError:
        return None
    return int(match[1]) / 1e3 if match else None


def _peak() -> float:
    """Return the peak memory of this process in megabytes.

    Linux starts ``ru_maxrss`` at the parent's peak, so it is used only where /proc is missing.
    """
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return _status("VmHWM") or peak / (1e6 if sys.platform == "darwin" else 1e3)


def _measure(side: str) -> dict[str, float]:
    build = {MMZOO: _mmzoo, BY_HAND: _by_hand, BARE: _bare}[side]()
    before = _status("VmRSS") or _peak()
    started = time.perf_counter()
    models = build()
    for model in models:
        _read(model)
    seconds = time.perf_counter() - started
    return {"call_seconds": seconds, "call_megabytes": _peak() - before, "process_megabytes": _peak()}


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1])))
