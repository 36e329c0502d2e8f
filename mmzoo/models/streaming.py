"""Stream generated text in pieces, each as soon as it is generated."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from mmzoo.errors import BadRecipe
from mmzoo.models.generation import Request, cut, decoding_options, model_inputs


def stream_text(model: Any, request: Request, is_list: bool) -> Iterator[str]:
    """Yield the pieces of one text as they are generated; joined, they equal the text that `write` returns.

    The library's loop runs in a thread, which ends when the caller closes the iterator.

    Raises:
        BadRecipe: the request has several prompts or answers, beams, or a streamer of its own.
    """
    asked = request.options
    if is_list or asked.get("num_beams", 1) > 1 or asked.get("num_return_sequences", 1) > 1:
        raise BadRecipe(f"stream: one {model.modality} and one prompt, without beams; use generate for more")
    if "streamer" in asked:
        raise BadRecipe("stream: streamer: stream has its own; use generate with another streamer")
    tokenizer = model.language_model.tokenizer
    streamer, closed = _TextStreamer(tokenizer), threading.Event()
    errors: list[BaseException] = []
    with torch.no_grad():
        inputs = model_inputs(model, request, request.examples)

    def run() -> None:
        try:
            with torch.no_grad():
                options = decoding_options(request, tokenizer)
                options["stopping_criteria"] = [*options.get("stopping_criteria", ()), _StopWhenClosed(closed)]
                ids = model.generate_ids(*inputs, streamer=streamer, **options)
            if not streamer.ids:  # a language model's own loop may ignore the streamer: yield all of the text at once
                streamer.put(ids[0])
        except BaseException as error:  # raised in the thread that reads
            errors.append(error)
        finally:
            streamer.end()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield from _stable_pieces(iter(streamer.queue.get, None), request.stop)
    finally:
        closed.set()
        thread.join()
    if errors:
        raise errors[0]


class _TextStreamer(BaseStreamer):
    """Put the whole text so far into a queue after each token, and None at the end."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.queue: queue.Queue[str | None] = queue.Queue()

    def put(self, value: Tensor) -> None:
        self.ids += value.flatten().tolist()
        self.queue.put(self.tokenizer.decode(self.ids, skip_special_tokens=True))

    def end(self) -> None:
        self.queue.put(None)


class _StopWhenClosed(StoppingCriteria):
    """Stop generating when the caller has closed the iterator."""

    def __init__(self, closed: threading.Event) -> None:
        self.closed = closed

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        return torch.full((input_ids.shape[0],), self.closed.is_set(), device=input_ids.device)


def _stable_pieces(texts: Iterator[str], stop: Sequence[str]) -> Iterator[str]:
    """Yield what each growing text adds, up to a stop string, without the space around the whole.

    What the next token may still change is held back: half a character, the beginning of a stop string, trailing space.
    """
    previous, yielded = "", ""
    for text in texts:
        text = cut(text.strip(), stop)
        same = takewhile(lambda pair: pair[0] == pair[1], zip(previous, text, strict=False))
        stable = "".join(character for character, _ in same).rstrip().rstrip("\ufffd")
        held = max((n for s in stop for n in range(1, len(s)) if stable.endswith(s[:n])), default=0)
        stable = stable[: len(stable) - held].rstrip()
        if stable.startswith(yielded) and stable != yielded:
            yield stable[len(yielded) :]
            yielded = stable
        previous = text
    if rest := previous[len(yielded) :].rstrip():
        yield rest
