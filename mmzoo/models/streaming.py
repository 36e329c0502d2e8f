"""Stream generated text in pieces, each as soon as it is written."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import StoppingCriteria
from transformers.generation.streamers import BaseStreamer

if TYPE_CHECKING:
    from mmzoo.models.model import MultimodalModel
from mmzoo.models.generation import Request, cut, decoding_options, model_inputs


def stream_text(model: MultimodalModel, asked: Request) -> Iterator[str]:
    """The pieces of one text as they are written; joined, they are what `write` gives.

    The library's loop runs in a thread; it ends when the caller stops listening.
    """
    tokenizer = model.language_model.tokenizer
    streamer = _Texts(tokenizer)
    left = threading.Event()
    failed: list[BaseException] = []
    with torch.no_grad():
        inputs = model_inputs(model, asked, asked.examples)

    def run() -> None:
        try:
            with torch.no_grad():
                options = decoding_options(asked, tokenizer)
                options["stopping_criteria"] = [*options.get("stopping_criteria", ()), _Left(left)]
                out = model.generate_ids(*inputs, streamer=streamer, **options)
            if not streamer.ids:  # a language model's own loop may know no streams: then all comes at once
                streamer.put(out[0])
            streamer.end()
        except BaseException as error:  # raised where it is read
            failed.append(error)
            streamer.end()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield from _shown(iter(streamer.queue.get, None), asked.stop)
    finally:
        left.set()
        thread.join()
    if failed:
        raise failed[0]


class _Texts(BaseStreamer):
    """The whole text so far, after each token; None at the end."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.queue: queue.Queue[str | None] = queue.Queue()

    def put(self, value: Tensor) -> None:
        self.ids += value.flatten().tolist()
        self.queue.put(self.tokenizer.decode(self.ids, skip_special_tokens=True))

    def end(self) -> None:
        self.queue.put(None)


class _Left(StoppingCriteria):
    """Nobody listens any more."""

    def __init__(self, event: threading.Event) -> None:
        self.event = event

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        return torch.full((input_ids.shape[0],), self.event.is_set(), device=input_ids.device)


def _shown(texts: Iterator[str], stop: Sequence[str]) -> Iterator[str]:
    """The pieces that growing texts add, without the space around the whole and from a stop string on.

    What the next token may still change is held back: half a character, a stop string's beginning, the space before a full stop.
    """
    before, shown = "", ""
    for text in texts:
        text = cut(text.strip(), stop)
        same = takewhile(lambda pair: pair[0] == pair[1], zip(before, text, strict=False))
        firm = "".join(character for character, _ in same).rstrip().rstrip("\ufffd")
        held = max((n for s in stop for n in range(1, len(s)) if firm.endswith(s[:n])), default=0)
        firm = firm[: len(firm) - held].rstrip()
        if firm.startswith(shown) and firm != shown:
            yield firm[len(shown) :]
            shown = firm
        before = text
    if rest := before[len(shown) :].rstrip():
        yield rest
