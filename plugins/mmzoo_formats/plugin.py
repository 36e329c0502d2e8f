"""Register the formats of checkpoints of other code."""

from __future__ import annotations

from mmzoo.api import Entry, hookimpl


def _entry(name: str, target: str, license: str, source: str, summary: str) -> Entry:
    """Return the entry of a format."""
    return Entry("format", name, f"mmzoo_formats.{target}", summary, license=license, source=source)


# fmt: off
_FORMATS = (
    _entry("clipcap", "clipcap:ClipCap", "MIT", "https://github.com/rmokady/CLIP_prefix_caption",
           "ClipCap's own .pt files, MLP and transformer (import)"),
    _entry("nanovlm", "nanovlm:NanoVLM", "Apache-2.0", "https://github.com/huggingface/nanoVLM",
           "nanoVLM's folders and repositories (import)"),
    _entry("llava", "llava:Llava", "varies", "https://arxiv.org/abs/2310.03744",
           "LLaVA as transformers' LlavaForConditionalGeneration has it (import, export)"),
)
# fmt: on


@hookimpl
def mmzoo_formats() -> list[Entry]:
    return list(_FORMATS)
