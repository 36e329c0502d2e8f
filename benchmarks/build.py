"""``mmzoo.build("clip-prefix-gpt2")`` beside plain code: seconds and peak memory until every weight is in memory.

The plain sides are the two bare ``from_pretrained`` calls, which give no model yet, and the same model by hand: those
calls, the image processor, and the mapper between the two. Checkpoints of the real sizes with random weights lie in a
Hugging Face cache that all sides read offline. Each measurement is a new process. "Call" starts the clock when
everything is imported and counts memory from there; "process" is the whole of it.

Weights are read once on the clock, since all sides map the files, and so far read nothing.
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
                said = child("-m", "benchmarks.build", side, env=env).splitlines()[-1]
                return {"process_seconds": time.perf_counter() - started, **json.loads(said)}

            return once

        sides = (MMZOO, BY_HAND, BARE)
        found = alternate(*(measure(side) for side in sides), repeats=settings.repeats, warm=True)
    measured = dict(zip(sides, found, strict=True))
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


# In the child. Each side imports what it needs, and gives back what it builds.


def _mmzoo() -> Callable[[], Iterable[Any]]:
    # These are imported by name when the checkpoint's configurations have been read.
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
    """Touch each page of each weight."""
    return sum(float(parameter.detach().view(-1)[::512].sum()) for parameter in model.parameters())


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
