"""A model of LLaVA's shape (Liu et al. 2023, https://arxiv.org/abs/2310.03744), as two classes with the same methods: mmzoo's and
`transformers.LlavaForConditionalGeneration`.

The library's is made with random weights and saved; mmzoo reads that folder. Both train the projector and the language model
beside a frozen tower, with the same optimizer, on the same pictures and texts, and write from the same prompts. As in
``mmzoo.train`` and the library's trainer, weights are float32, and matrices are multiplied in 16 bits on a GPU (autocast). To
write, the weights themselves are of 16 bits there.
"""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu import device

RATE = 1e-4
IGNORED = -100  # the library's label of positions without one
LENGTHS = ((24, 96), (8, 64))  # bytes, and so tokens, of questions and answers


class Shape:
    """Train and write with a model; a side provides the model, its loss, and its texts."""

    model: nn.Module

    def __init__(self, folder: str, sizes: dict[str, Any], seed: int) -> None:
        self.folder, self.sizes, self.seed = Path(folder), sizes, seed
        torch.backends.cudnn.allow_tf32 = False  # else the picture's patches are multiplied in 10 bits also in float32

    def open(self) -> dict[str, Any]:
        """Make or read the model, and prepare the batch."""
        raise NotImplementedError

    def loss(self, batch: dict[str, Any]) -> Tensor:
        raise NotImplementedError

    def batch(self, count: int) -> dict[str, Any]:
        """Return the first ``count`` examples on the device."""
        raise NotImplementedError

    def write(self, count: int, new: int) -> list[str]:
        """Return the texts of the first ``count`` examples, each of ``new`` tokens."""
        raise NotImplementedError

    def ready(self, model: nn.Module, tower: nn.Module) -> dict[str, Any]:
        """Put the model on the device and in training, all but the tower; return its sizes."""
        self.model = model.to(device.device())
        tower.requires_grad_(False)
        self.model.train()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=RATE, fused=True)
        self.trained = trained
        return {"weights": sum(p.numel() for p in model.parameters()), "trained": sum(p.numel() for p in trained)}

    def check(self, count: int, steps: int, new: int) -> dict[str, Any]:
        """Return the losses of steps in float32, and texts, which must be those of the other side."""
        batch = self.batch(count)
        losses = [self._step(batch, nullcontext()) for _ in range(steps)]
        return {"losses": [loss.item() for loss in losses], "texts": self.write(count, new)}

    def prepare(self) -> dict[str, Any]:
        """Take the first steps, which allocate, and return the operations of one, the peak memory and the loss."""
        self.model.train()
        self.large = self.batch(self.sizes["batch"])
        loss = self._step(self.large)
        device.reset_peak()
        self._step(self.large)
        peak = device.peak_bytes()
        with FlopCounterMode(display=False) as counter:
            self._step(self.large)
        return {"flops": counter.get_total_flops(), "bytes": peak, "loss": loss.item()}

    def steps(self, count: int) -> float:
        """Return the seconds of one of ``count`` steps."""
        began = device.now()
        for _ in range(count):
            self._step(self.large)
        return (device.now() - began) / count

    def _step(self, batch: dict[str, Any], context: AbstractContextManager[Any] | None = None) -> Tensor:
        with self._autocast() if context is None else context:
            loss = self.loss(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = device.half()
        return nullcontext() if dtype is None else torch.autocast("cuda", dtype)

    def shrink(self) -> None:
        """End training, and give the weights 16 bits on a GPU."""
        del self.optimizer, self.trained
        self.large = {}
        self.model.eval()
        if (dtype := device.half()) is not None:
            self.model.to(dtype)
            torch.cuda.empty_cache()

    def tokens_a_second(self, count: int, new: int) -> tuple[float, list[str]]:
        """Return the speed of writing ``new`` tokens for each of ``count`` pictures, and the texts."""
        began = device.now()
        texts = self.write(count, new)
        return count * new / (device.now() - began), texts


class Library(Shape):
    """Use the library's class, as its documentation does."""

    def open(self) -> dict[str, Any]:
        from transformers import LlavaForConditionalGeneration

        torch.manual_seed(self.seed)
        processor, config = _processor(self.sizes), _config(self.sizes)
        with device.device():
            model = LlavaForConditionalGeneration(config)
        model.generation_config.eos_token_id, model.generation_config.pad_token_id = 2, 0
        model.save_pretrained(self.folder)
        processor.save_pretrained(self.folder)
        self.processor = processor
        return self.ready(model, model.model.vision_tower)

    def loss(self, batch: dict[str, Any]) -> Tensor:
        return self.model(**batch).loss

    def batch(self, count: int) -> dict[str, Any]:
        tokenizer, rows, labels = self.processor.tokenizer, [], []
        pictures, questions, answers = zip(*examples(self.sizes, self.seed, count), strict=True)
        for picture, question, answer in zip(pictures, questions, answers, strict=True):
            prompt = self.processor(images=picture, text=question)["input_ids"][0]
            own = tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]
            rows.append([*prompt, *own, tokenizer.eos_token_id])
            labels.append([*[IGNORED] * len(prompt), *own, tokenizer.eos_token_id])
        width = max(map(len, rows))
        batch = {
            "input_ids": torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows]),
            "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
            "labels": torch.tensor([row + [IGNORED] * (width - len(row)) for row in labels]),
            "pixel_values": self.processor.image_processor(list(pictures), return_tensors="pt")["pixel_values"],
        }
        return {name: value.to(device.device()) for name, value in batch.items()}

    def write(self, count: int, new: int) -> list[str]:
        pictures, questions, _ = zip(*examples(self.sizes, self.seed, count), strict=True)
        model: Any = self.model
        self.processor.tokenizer.padding_side = "left"
        inputs = self.processor(
            images=[[picture] for picture in pictures], text=list(questions), return_tensors="pt", padding=True
        ).to(device.device(), model.dtype)
        model.eval()
        with torch.no_grad():
            out = model.generate(**inputs, do_sample=False, max_new_tokens=new, min_new_tokens=new)
        own = out[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in self.processor.tokenizer.batch_decode(own, skip_special_tokens=True)]


class Ours(Shape):
    """Use mmzoo."""

    def open(self) -> dict[str, Any]:
        import mmzoo

        model = mmzoo.import_model("llava", self.folder)
        model.part("language_model").requires_grad_(True)  # what `train: full` of a recipe does
        model.provenance.policies["language_model"] = "full"
        return self.ready(model, model.encoder)

    def loss(self, batch: dict[str, Any]) -> Tensor:
        return self.model(**batch)["loss"]

    def batch(self, count: int) -> dict[str, Any]:
        import mmzoo
        from mmzoo.data.collate import tensors

        model: Any = self.model
        rows = [
            mmzoo.Example(str(i), picture, question, (answer,))
            for i, (picture, question, answer) in enumerate(examples(self.sizes, self.seed, count))
        ]
        return tensors(model.collator(training=True)(rows), device.device())

    def write(self, count: int, new: int) -> list[str]:
        pictures, questions, _ = zip(*examples(self.sizes, self.seed, count), strict=True)
        model: Any = self.model
        model.eval()
        return model.generate(
            list(pictures), list(questions), batch_size=count, do_sample=False, max_new_tokens=new, min_new_tokens=new
        )


def examples(sizes: dict[str, Any], seed: int, count: int) -> list[tuple[Any, str, str]]:
    """Return noise of the tower's size with questions and answers of random letters."""
    random = np.random.default_rng(seed)
    side, letters = sizes["vision"]["image_size"], np.array(list("abcdefghijklmnopqrstuvwxyz "))
    rows = []
    for _ in range(count):
        picture = random.integers(0, 256, (side, side, 3), dtype=np.uint8)
        question, answer = ("x" + "".join(random.choice(letters, random.integers(*span))).strip() for span in LENGTHS)
        rows.append((picture, f"<image>{question}", answer))
    return rows


def _config(sizes: dict[str, Any]) -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    text = LlamaConfig(**sizes["text"], pad_token_id=0, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False)
    return LlavaConfig(
        vision_config=CLIPVisionConfig(**sizes["vision"]),
        text_config=text,
        image_token_index=_image_id(sizes),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )


def _image_id(sizes: dict[str, Any]) -> int:
    return sizes["text"]["vocab_size"] - 1


def _processor(sizes: dict[str, Any]) -> Any:
    """Return a processor whose tokenizer has a token for each of the language model's, so that what it writes can be compared."""
    from tokenizers import Tokenizer
    from transformers import AddedToken, CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerFast

    from mmzoo_transformers.bytes import byte_tokenizer

    small, side, last = byte_tokenizer(), sizes["vision"]["image_size"], _image_id(sizes)
    data = json.loads(small.backend_tokenizer.to_str())
    data["model"]["vocab"] |= {f"w{i}": i for i in range(len(small), last)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(data)),
        pad_token=small.pad_token,
        bos_token=small.bos_token,
        eos_token=small.eos_token,
        unk_token=small.unk_token,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_tokens([AddedToken("<image>", special=True, normalized=False)])
    return LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side}),
        tokenizer=tokenizer,
        patch_size=sizes["vision"]["patch_size"],
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
