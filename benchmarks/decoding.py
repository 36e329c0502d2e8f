"""Compare ``model.generate`` with two ways by hand: greedy decoding of 40 tokens for each of 16 images at GPT-2's size.

One is the loop of ClipCap's notebook (Mokady et al. 2021, generate2): one image at a time, without a cache, so that the whole
sequence is computed again for each token. The other is the library's ``generate(inputs_embeds=...)`` on prepared inputs. All
must give the same tokens.
"""

from __future__ import annotations

import time
from typing import Any

from benchmarks.clipcap import RECIPE
from benchmarks.common import Ratio, Settings, alternate

IMAGES, TOKENS = 16, 40
LOOP, DIRECT = 15.0, 1.03


def run(settings: Settings) -> list[Ratio]:
    import numpy as np
    import torch

    import mmzoo

    model = mmzoo.build(mmzoo.Recipe.of(RECIPE), seed=settings.seed)
    random = np.random.default_rng(settings.seed)
    images = [random.integers(0, 255, (16, 16, 3), dtype=np.uint8) for _ in range(IMAGES)]
    length = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS}
    batch = model.collator(training=False)([mmzoo.Example(str(i), image) for i, image in enumerate(images)])
    gpt, tokenizer = model.language_model.model, model.language_model.tokenizer
    with torch.no_grad():
        features = model.features(batch["encoders"])["image"]
        prefix = model.fusion.prefix(features.pooled)  # type: ignore[operator]
    outputs: dict[str, Any] = {}

    def timed(name: str, work: Any) -> Any:
        def side() -> float:
            began = time.perf_counter()
            with torch.no_grad():
                outputs[name] = work()
            return time.perf_counter() - began

        return side

    def loop() -> list[list[int]]:
        rows = []
        for one in prefix:
            generated, ids = one.unsqueeze(0), []
            for _ in range(TOKENS):
                logits = gpt(inputs_embeds=generated, use_cache=False).logits[0, -1]
                logits[tokenizer.eos_token_id] = -float("inf")  # as min_new_tokens does
                ids.append(int(logits.argmax()))
                generated = torch.cat([generated, gpt.transformer.wte(torch.tensor([[ids[-1]]]))], dim=1)
            rows.append(ids)
        return rows

    def direct() -> list[list[int]]:
        ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        mask = torch.ones(prefix.shape[:2], dtype=torch.long)
        return gpt.generate(inputs_embeds=prefix, attention_mask=mask, do_sample=False, **ends, **length).tolist()

    ours = timed("mmzoo", lambda: model.generate(images, batch_size=IMAGES, **length))
    quick = alternate(ours, timed("direct", direct), repeats=3 * settings.repeats, warm=True)
    slow = alternate(ours, timed("loop", loop), repeats=max(1, settings.repeats // 2))
    texts = {
        name: [tokenizer.decode(row, skip_special_tokens=True).strip() for row in outputs[name]] for name in ("direct", "loop")
    }
    if not outputs["mmzoo"] == texts["direct"] == texts["loop"]:
        raise RuntimeError("the sides did not write the same")
    name = f"decoding: {IMAGES} images x {TOKENS} tokens, greedy"
    return [
        Ratio(
            f"{name}, against a loop without a cache",
            [1 / seconds for seconds in slow[0]],
            [1 / seconds for seconds in slow[1]],
            "batches/s",
            LOOP,
            higher=True,
            sides=("model.generate", "loop"),
        ),
        Ratio(
            f"{name}, against the library's generate", *quick, "s", DIRECT, sides=("model.generate", "generate(inputs_embeds)")
        ),
    ]
