"""Checkpoints of other code, in and out."""

from __future__ import annotations

from mmzoo.api import Entry, hookimpl


@hookimpl
def mmzoo_formats() -> list[Entry]:
    return [
        Entry(
            "format",
            "clipcap",
            target="mmzoo_formats.clipcap:ClipCap",
            summary="ClipCap's own .pt files, MLP and transformer (import)",
            license="MIT",
            source="https://github.com/rmokady/CLIP_prefix_caption",
        ),
        Entry(
            "format",
            "nanovlm",
            target="mmzoo_formats.nanovlm:NanoVLM",
            summary="nanoVLM's folders and repositories (import)",
            license="Apache-2.0",
            source="https://github.com/huggingface/nanoVLM",
        ),
        Entry(
            "format",
            "llava",
            target="mmzoo_formats.llava:Llava",
            summary="LLaVA as transformers' LlavaForConditionalGeneration has it (import, export)",
            license="varies",
            source="https://arxiv.org/abs/2310.03744",
        ),
    ]
