"""Try every language and vision model type of the installed transformers, built tiny: ``python -m experiments.families``.

For each type `mmzoo.check` is asked first. What it refuses is a row with its words; whatever passes it must be right: a crash
or a difference afterwards is a fault. Each type runs in a process of its own with a limit on time and memory. The results are
kept in ``experiments/runs/families.json`` (a type that has one is not tried again), and docs/reference/language-models.md is
written from them.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are tiny
os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "experiments" / "runs" / "families.json"
PAGE = ROOT / "docs" / "reference" / "language-models.md"
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

LIMIT = 240  # seconds for a type
MEMORY = 16 << 30  # bytes of address space for a type
LARGEST = 60_000_000  # parameters; a type whose smallest form has more is not tried
ENTRIES = {"causal": "hf-causal", "bidirectional": "hf-encoder", "decoder": "bert-decoder", "seq2seq": "hf-seq2seq"}
ENTRIES |= {"vision": "hf-vision"}
TITLES = {
    "causal": "Causal language models (`hf-causal`)",
    "bidirectional": "Bidirectional encoders (`hf-encoder`)",
    "decoder": "Bidirectional encoders that write (`bert-decoder`)",
    "seq2seq": "Encoder-decoders (`hf-seq2seq`)",
    "vision": "Vision models (`hf-vision`)",
}
POLICIES = {"frozen": "frozen", "lora": "lora:2", "full": "full"}
COLUMNS = ("probe", "batch", "generation", *POLICIES, "load", "memory")
OK, REFUSED, UNKNOWN, NONE = "ok", "refused", "unknown", "-"
RIGHT = (OK, REFUSED, UNKNOWN, NONE)  # what is unknown is said to be so
GPT2 = {"model_type": "gpt2", "vocab_size": 264, "n_positions": 256, "n_embd": 32, "n_layer": 2, "n_head": 2, "pad_token_id": 0}
GPT2 |= {"bos_token_id": 1, "eos_token_id": 2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
PROMPTS = ("what is it", "a", "name the colour of the square, and say why")
ANSWERS = ("red", "green and some blue", "blue")
NEAR = 2e-4  # the largest difference, as a share of the largest value


class Difference(AssertionError):
    """Report that two results differ that must be equal."""


def recipe(kind: str, config: Mapping[str, Any], policy: str = "frozen") -> dict[str, Any]:
    """Return the parts of a model around a type's configuration."""
    own = {"use": ENTRIES[kind], "config": dict(config), "train": policy}
    task: dict[str, Any] = {"use": "vqa", "template": "{text}"}
    if kind == "bidirectional":
        task = {"use": "classify", "labels": ["red", "green", "blue"]}
    parts: dict[str, Any] = {
        "encoder": {"use": "cnn", "train": "frozen", "image_size": 16, "channels": [8, 8]},
        "fusion": {"use": "prefix-mlp", "length": 3},
        "language_model": {"use": "hf-causal", "config": GPT2, "train": "frozen"},
        "task": task,
    }
    parts["encoder" if kind == "vision" else "language_model"] = own
    return parts


def examples(kind: str) -> list[Any]:
    """Return examples whose texts have other lengths and whose pictures have other colours."""
    from PIL import Image

    from mmzoo.interfaces import Example

    made = []
    for number, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        picture = Image.new("RGB", (48, 40), (60 * number, 255 - 70 * number, 40 * number))
        picture.paste((255, 255, 0), (4, 4, 12 + 6 * number, 20))
        made.append(Example(str(number), picture, prompt, (answer.partition(" ")[0] if kind == "bidirectional" else answer,)))
    return made


def try_type(kind: str, name: str, note: Callable[[str, str], None], columns: Collection[str] = COLUMNS) -> None:
    """Try a type, and note the result of each column: `OK`, `NONE` where it does not apply, ``refused: why`` or an error.

    Args:
        columns: those to try; ``load`` is tried with what was trained.
    """
    import tiny_families

    from mmzoo.errors import MmzooError
    from mmzoo.models.assemble import assemble
    from mmzoo.recipes.reading import read_recipe

    try:
        config = tiny_families.tiny_config(name)
        still = tiny_families.tiny_config(name, dropout=False)
    except Exception as error:
        note("tiny", short(error))
        return
    try:
        checked = assemble(read_recipe(None, pretrained=False, **recipe(kind, still)), meta=True)  # as `mmzoo.check` does
    except MmzooError as error:
        own = first_line(error)
        if "does not accept it" in own or "cannot be built" in own:  # the small configuration is wrong, or the class itself
            note("tiny", own)
        elif is_accepted(recipe(kind, {"model_type": name})):
            note("tiny", f"its own default configuration is accepted, and the small one is refused: {own}")
        else:
            note("check", f"{REFUSED}: {own}")
        return
    except Exception as error:
        note("check", short(error))
        return
    try:
        size = sum(parameter.numel() for parameter in checked.parameters())
        if size > LARGEST:
            note("tiny", f"{size} parameters")
            return
        model = built(recipe(kind, still))
        part = model.encoder if kind == "vision" else model.language_model
        note("class", type(part.model).__name__)
    except Exception as error:
        note("check", short(error))
        return
    note("check", OK)
    if "memory" in columns:
        needed = checked.summary().activations
        note("memory", f"{UNKNOWN}: {needed.problem}" if needed.problem else OK)
    steps: dict[str, Callable[[], str]] = {
        "probe": lambda: probe_vision(model) if kind == "vision" else probe(model, kind),
        "batch": lambda: padded_batch(kind, still),
        "generation": lambda: NONE if kind in ("bidirectional", "vision") else generation(model, kind),
    }
    for column, step in steps.items():
        if column in columns:
            note(column, outcome(step))
    with tempfile.TemporaryDirectory() as folder:
        loads = []
        for column, policy in POLICIES.items():
            if column not in columns:
                continue
            output = Path(folder) / column
            note(column, outcome(partial(trained, kind, config, policy, output)))
            if policy != "frozen" and (output / "mmzoo.json").is_file():
                loads.append(outcome(partial(loaded, kind, output)))
        if "load" in columns:
            note("load", next((line for line in loads if line != OK), OK if loads else NONE))


def is_accepted(parts: Mapping[str, Any]) -> bool:
    """Return whether `mmzoo.check` accepts a recipe."""
    from mmzoo.models.assemble import assemble
    from mmzoo.recipes.reading import read_recipe

    try:
        assemble(read_recipe(None, pretrained=False, **parts), meta=True)
    except Exception:
        return False
    return True


def outcome(step: Callable[[], str]) -> str:
    from mmzoo.errors import MmzooError

    try:
        return step()
    except MmzooError as error:
        return f"{type(error).__name__} after check: {first_line(error)}"
    except Exception as error:
        return short(error)


def first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:400]


def short(error: BaseException) -> str:
    """Return an error in a line, with the place that raised it."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    line = f"{type(error).__name__}: {first_line(error)[:240]}"
    return line if isinstance(error, Difference) else f"{line} ({Path(place.filename).name}:{place.lineno})"


def built(parts: Mapping[str, Any]) -> Any:
    """Return a model whose weights are all random; a new one has norms of one and biases of zero, which would hide errors."""
    import torch

    import mmzoo

    model = mmzoo.build(**parts, seed=0, pretrained=False)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def equal(ours: Any, theirs: Any, what: str) -> None:
    """Check that two tensors are equal up to rounding.

    Raises:
        Difference: they are not.
    """
    import torch

    if ours.shape != theirs.shape:
        raise Difference(f"{what}: shapes {tuple(ours.shape)} and {tuple(theirs.shape)}")
    if not torch.isfinite(ours).all() or not torch.isfinite(theirs).all():
        raise Difference(f"{what}: not finite")
    largest = float(theirs.abs().max())
    apart = float((ours - theirs).abs().max()) / max(largest, 1e-9)
    if apart > NEAR:
        raise Difference(f"{what}: {apart:.1%} of the largest value apart")


def copy_of(part: Any) -> Any:
    """Return the library's own model of the same class, configuration and weights, which this project has not touched."""
    import copy

    from mmzoo.api import construct_model

    model = part.model
    fresh = construct_model(type(model), copy.deepcopy(model.config), **getattr(part, "_extra", {}))
    fresh.load_state_dict(model.state_dict())
    if hasattr(fresh, "set_default_language") and model.config.default_language:
        fresh.set_default_language(model.config.default_language)
    return fresh.eval()


def probe(model: Any, kind: str) -> str:
    """Compare logits, or states, with those of the library's class: from ids, and from embeddings."""
    import torch

    part = model.language_model
    reference = copy_of(part)
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(8, 250, (2, 21), generator=generator)
    with torch.no_grad():
        if kind == "bidirectional":
            ours = model.outputs({}, {"ids": ids, "mask": torch.ones_like(ids)}).hidden
            equal(ours, reference(input_ids=ids).last_hidden_state, "states of ids")
            return OK
        if kind == "seq2seq":
            start = part.start_id
            decoder = torch.randint(8, 250, (2, 9), generator=generator)
            decoder[:, 0] = start
            outputs = model.outputs({}, {"ids": ids, "mask": torch.ones_like(ids), "decoder_ids": decoder})
            theirs = reference(input_ids=ids, decoder_input_ids=decoder).logits
            rows, columns = torch.arange(2).repeat_interleave(9), torch.arange(9).repeat(2)
            equal(outputs.logits(rows, columns), theirs[rows, columns], "logits of ids")
            return OK
        outputs = model.outputs({}, {"ids": ids, "mask": torch.ones_like(ids)})
        rows, columns = torch.arange(2).repeat_interleave(20), torch.arange(1, 21).repeat(2)
        ours = outputs.logits(rows, columns)
        equal(ours, reference(input_ids=ids).logits[rows, columns - 1], "logits of ids")
        embedded = reference(inputs_embeds=part.embed(ids)).logits[rows, columns - 1]
        if not torch.allclose(embedded, ours, atol=1e-3):
            return (
                OK if getattr(part, "reads_ids", False) else "Difference: the library's class gives other logits for embeddings"
            )
    return OK


def probe_vision(model: Any) -> str:
    """Compare features with the library's class, and two passes over the same pictures."""
    import torch

    encoder = model.encoder
    batch = collated(model, examples("vision"))
    pixels = batch["encoders"]["image"]["inputs"]
    with torch.no_grad():
        first, second = encoder(pixels), encoder(pixels)
        equal(second.tokens, first.tokens, "a second pass")
        equal(second.pooled, first.pooled, "a second pass")
        reference = copy_of(encoder)
        for number in range(len(pixels)):
            picture, own = pixels[number : number + 1], first.tokens[number : number + 1]
            equal(encoder(picture).tokens, own, "a picture alone and in a batch")
            theirs = library_tokens(reference, picture, own.shape[2])
            last = theirs.shape[1] - max(0, getattr(reference.config, "num_detection_tokens", 0))  # of YOLOS, no patches
            equal(own, theirs[:, last - own.shape[1] : last], "tokens")
    return OK


def library_tokens(reference: Any, picture: Any, dim: int) -> Any:
    """Return the last states of a library's class for a picture, [1, tokens, dim]."""
    import inspect

    import torch

    more = {}
    if "noise" in inspect.signature(reference.forward).parameters:  # the order of ViTMAE's patches
        size, patch = picture.shape[-1], reference.config.patch_size
        more["noise"] = torch.arange((size // patch) ** 2)[None]
    states = reference(pixel_values=picture, **more).last_hidden_state
    if states.ndim == 3:
        return states
    return states.flatten(1, 2) if states.shape[-1] == dim and states.shape[1] != dim else states.flatten(2).transpose(1, 2)


def collated(model: Any, rows: Sequence[Any], training: bool = False) -> Any:
    from mmzoo.data.collate import tensors

    return tensors(model.collator(training=training)(rows), "cpu")


def padded_batch(kind: str, config: Mapping[str, Any]) -> str:
    """Compare the loss of a padded batch, and the gradients of the fusion, with those of its rows alone; frozen and in full."""
    for policy in ("frozen",) if kind == "vision" else ("frozen", "full"):
        model = built(recipe(kind, config, policy))
        model.train()
        rows = examples(kind)
        loss, gradients, count = step(model, collated(model, rows, training=True))
        if not any(bool(gradient.any()) for gradient in gradients.values()):  # of a long text alone, a window may see none
            raise Difference("no gradient reaches the fusion")
        alone = [step(model, collated(model, [row], training=True)) for row in rows]
        expected = sum(each[0] * each[2] for each in alone) / count
        equal(loss.reshape(1), expected.reshape(1), f"{policy}: the loss of a batch and of its rows")
        for name in gradients:
            mean = sum(each[1][name] * each[2] for each in alone) / count
            equal(gradients[name], mean, f"{policy}: the gradient of {name}, of a batch and of its rows")
    return OK


def step(model: Any, batch: Any) -> tuple[Any, dict[str, Any], int]:
    """Return the loss of a batch, the gradients of the fusion, and the number of labels."""
    from mmzoo.models.model import count_labels

    model.zero_grad()
    loss = model(**batch)["loss"]
    loss.backward()
    [own] = batch["tasks"].values()
    gradients = {name: p.grad.clone() for name, p in model.fusion.named_parameters() if p.grad is not None}
    return loss.detach(), gradients, int(count_labels(own["labels"]))


def generation(model: Any, kind: str) -> str:
    """Compare what is generated for a prompt alone, in a batch, and by the largest logits of the whole text."""
    import torch

    if not model.language_model.spec.generates:
        return "refused: it does not generate"
    rows = examples(kind)
    together = written(model, collated(model, rows))
    for number, row in enumerate(rows):
        batch = collated(model, [row])
        [alone] = written(model, batch)
        if alone != together[number]:
            raise Difference(f"generation: {together[number]} in a batch and {alone} alone")
        [own] = batch["tasks"].values()
        with torch.no_grad():
            features = model.features(batch["encoders"])
            new = torch.tensor([alone])
            if kind == "seq2seq":
                decoder = torch.cat([torch.full((1, 1), model.language_model.start_id), new[:, :-1]], 1)
                outputs = model.outputs(features, {**own, "decoder_ids": decoder})
                columns = torch.arange(len(alone))
            else:
                ids = torch.cat([own["ids"], new], 1)
                outputs = model.outputs(features, {"ids": ids, "mask": torch.ones_like(ids)})
                columns = torch.arange(len(alone)) + own["ids"].shape[1]
            logits = outputs.logits(torch.zeros_like(columns), columns)
        for place, (token, own_logits) in enumerate(zip(alone, logits, strict=True)):
            best = int(own_logits.argmax())
            if best != token and float(own_logits[best] - own_logits[token]) > 1e-3 * float(own_logits.abs().max()):
                raise Difference(f"generation: token {place} is {token}, and the logits of the whole text say {best}")
    return OK


def written(model: Any, batch: Any) -> list[list[int]]:
    """Return the ids that are generated, up to the end token."""
    import torch

    [own] = batch["tasks"].values()
    with torch.no_grad(), model.evaluating():
        ids = model.generate_ids(model.features(batch["encoders"]), own["ids"], own["mask"], max_new_tokens=8)
    ends = model.language_model.end_ids
    lines = []
    for row in ids.tolist():
        end = next((place for place, token in enumerate(row) if token in ends), len(row) - 1)
        lines.append(row[: end + 1])
    return lines


def trained(kind: str, config: Mapping[str, Any], policy: str, folder: Path) -> str:
    """Train two steps through `mmzoo.train`, and check that losses are finite and that gradients reach what is trained."""
    import math

    import mmzoo
    from mmzoo.errors import DoesNotFit
    from mmzoo.models.assemble import assemble
    from mmzoo.recipes.reading import read_recipe

    parts = recipe(kind, config, policy)
    try:
        assemble(read_recipe(None, pretrained=False, **parts), meta=True)  # what `mmzoo.check` does before it counts bytes
    except DoesNotFit as error:
        return f"{REFUSED}: {first_line(error)}"
    options = {"max_steps": 2, "batch_size": 4, "precision": "fp32", "log_every": 1}
    training = mmzoo.train(parts, dataset=dataset(kind), output=folder, progress=False, training=options)
    if training.steps != 2 or not all(math.isfinite(entry["loss"]) for entry in training.history):
        raise Difference(f"training: {training.steps} steps, losses {[entry.get('loss') for entry in training.history]}")
    model = training.model
    model.train()
    _, gradients, _ = step(model, collated(model, examples(kind), training=True))
    if not any(bool(gradient.any()) for gradient in gradients.values()):
        raise Difference("no gradient reaches the fusion")
    part = model.encoder if kind == "vision" else model.language_model
    names = [name for name, p in part.named_parameters() if p.requires_grad]
    reached = [name for name, p in part.named_parameters() if p.grad is not None and bool(p.grad.abs().sum() > 0)]
    if policy == "frozen" and names:
        raise Difference(f"frozen: {names[0]} is trained")
    if policy != "frozen" and not reached:
        raise Difference(f"no gradient reaches the {len(names)} weights that are trained")
    return OK


def dataset(kind: str) -> Any:
    from mmzoo.data.dataset import Dataset

    class Rows(Dataset):
        def splits(self) -> list[str]:
            return ["train", "test"]

        def load(self, split: str) -> list[Any]:
            return examples(kind) * 3

    return Rows(None)


def loaded(kind: str, folder: Path) -> str:
    """Compare the checkpoint's weights and predictions, loaded twice; and with those saved again."""
    import torch

    import mmzoo

    model, rows = mmzoo.load(folder), examples(kind)[:2]
    limit = {} if kind == "bidirectional" else {"max_new_tokens": 3}
    before = model.predict_examples(rows, **limit)
    again = folder.with_name(folder.name + "-again")
    model.save(again)
    second = mmzoo.load(again)
    state, other = model.state_dict(), second.state_dict()
    if state.keys() != other.keys():
        raise Difference(f"load: {sorted(state.keys() ^ other.keys())[0]} is in one only")
    for name, value in state.items():
        if not torch.equal(value, other[name]):
            raise Difference(f"load: {name} differs")
    if before != second.predict_examples(rows, **limit):
        raise Difference("load: other predictions")
    return OK


# The processes and the record


def families(kind: str) -> tuple[str, ...]:
    import tiny_families

    if kind == "decoder":
        causal = tiny_families.families("causal")
        return tuple(name for name in tiny_families.families("bidirectional") if name in causal)
    return tiny_families.families(kind)


def run(
    wanted: Sequence[tuple[str, str]], *, jobs: int = 1, columns: Collection[str] = COLUMNS
) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Try types, ``jobs`` at a time, each in a forked process; yield the kind, the name and the results of each."""
    waiting, running = list(wanted), {}
    with tempfile.TemporaryDirectory() as folder:
        while waiting or running:
            while waiting and len(running) < jobs:
                kind, name = waiting.pop(0)
                path = Path(folder) / f"{kind}-{name}.jsonl"
                pid = os.fork()
                if not pid:
                    _child(kind, name, path, columns)
                running[pid] = kind, name, path, time.monotonic()
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                for each, (*_, started) in running.items():
                    if time.monotonic() - started > LIMIT:
                        os.kill(each, signal.SIGKILL)
                time.sleep(0.05)
                continue
            kind, name, path, started = running.pop(pid)
            results = dict(json.loads(line) for line in path.read_text().splitlines()) if path.is_file() else {}
            if status:
                died = "ran past the time limit" if time.monotonic() - started > LIMIT else f"the process ended with {status}"
                results[next((column for column in COLUMNS if column in columns and column not in results), "check")] = died
            results["seconds"] = f"{time.monotonic() - started:.1f}"
            yield kind, name, results


def _child(kind: str, name: str, path: Path, columns: Collection[str]) -> None:
    """Try a type in this forked process, and end it."""
    code = 1
    try:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        with path.open("a") as file:

            def note(column: str, result: str) -> None:
                file.write(json.dumps([column, result]) + "\n")
                file.flush()

            try_type(kind, name, note, columns)
        code = 0
    finally:
        os._exit(code)


def read(record: Path = RECORD) -> dict[str, Any]:
    return json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {"versions": {}, "types": {}}


def is_right(results: Mapping[str, str]) -> bool:
    """Return whether every column is right, refused by name or does not apply."""
    if "tiny" in results:
        return False
    if results.get("check", "").startswith(REFUSED):
        return True
    return results.get("check") == OK and all(results.get(column, NONE).partition(":")[0] in RIGHT for column in COLUMNS)


def complete(results: Mapping[str, str], columns: Collection[str]) -> bool:
    """Return whether a type has a result in each column, or needs none."""
    if results.get("check", OK) != OK or "tiny" in results:
        return True
    return all(column in results for column in columns)


def page(data: Mapping[str, Any]) -> str:
    """Return the page, from the record only."""
    versions = data["versions"]
    lines = ["<!-- written by `python -m experiments.families`; do not edit -->\n\n# Language and vision models\n"]
    lines.append(
        "Every model type of the installed transformers, built tiny with random weights and tried by "
        "`python -m experiments.families`, which keeps its record in `experiments/runs/families.json`. "
        f"Made with transformers {versions.get('transformers')}, torch {versions.get('torch')} and Python "
        f"{versions.get('python')}, on a CPU in float32.\n\n"
        "- **probe**: logits (or states, or features) are those of the library's own class with the same weights.\n"
        "- **batch**: in training, the loss of a padded batch and the gradients of the fusion are those of its rows alone, with "
        "the type frozen and trained in full.\n"
        "- **generation**: a text is the same alone and in a batch, and is what the logits of the whole text say.\n"
        "- **frozen**, **lora**, **full**: two steps of `mmzoo.train` under that policy; losses are finite and gradients reach "
        "what is trained.\n"
        "- **memory**: `mmzoo check` can say what a training step needs.\n"
        "- **load**: a checkpoint that is loaded, saved and loaded again has the same weights and predictions.\n\n"
        'A type that `mmzoo check` refuses is listed with its words; "-" does not apply, and an empty cell was not tried '
        '("right so far": what was tried is right).\n'
    )
    lines.append(
        "| | types | right | right so far | refused by `check` | at fault | not made tiny |\n|---|---|---|---|---|---|---|"
    )
    for kind, title in TITLES.items():
        rows = data["types"].get(kind, {}).values()
        refused = sum(each.get("check", "").startswith(REFUSED) for each in rows)
        tiny = sum("tiny" in each for each in rows)
        right = sum(is_right(each) and complete(each, COLUMNS) for each in rows) - refused
        partly = sum(is_right(each) and not complete(each, COLUMNS) for each in rows)
        wrong = len(rows) - right - partly - refused - tiny
        lines.append(f"| {title} | {len(rows)} | {right} | {partly} | {refused} | {wrong} | {tiny} |")
    for kind, title in TITLES.items():
        rows = data["types"].get(kind, {})
        if not rows:
            continue
        lines.append(f"\n## {title}\n\n| type | class | {' | '.join(COLUMNS)} |\n|---|---|{'---|' * len(COLUMNS)}")
        refusals, tiny, notes = [], [], []
        for name, results in sorted(rows.items()):
            if "tiny" in results:
                tiny.append(f"- `{name}`: {results['tiny']}")
            elif results.get("check", "").startswith(REFUSED):
                refusals.append(f"- `{name}`: {results['check'].partition(': ')[2]}")
            else:
                cells = []
                for column in COLUMNS:
                    result = results.get(column, results.get("check", "") if column == "probe" else "")
                    word = result.partition(":")[0]
                    cells.append(word if word in RIGHT else "**fault**" if result else "")
                    if word not in (OK, NONE) and result:
                        notes.append(f"- `{name}`, {column}: {result}")
                lines.append(f"| `{name}` | {results.get('class', '')} | {' | '.join(cells)} |")
        for head, part in (("Notes", notes), ("Refused by `check`", refusals), ("Not made tiny", tiny)):
            if part:
                lines.append(f"\n### {head}\n\n" + "\n".join(_escaped(line) for line in part))
    return "\n".join(lines) + "\n"


def _escaped(line: str) -> str:
    return line.replace("<", "&lt;").replace("*", "\\*")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.families", description=__doc__)
    parser.add_argument("--only", action="append", default=[], metavar="TYPE", help="try this type again; may be repeated")
    parser.add_argument("--kind", action="append", default=[], choices=list(ENTRIES), help="only this kind; may be repeated")
    parser.add_argument("--column", action="append", default=[], choices=COLUMNS, help="only this column; may be repeated")
    parser.add_argument("--again", choices=["all", "faults"], help="try types again that have a result")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--record", type=Path, default=RECORD, help="the record to read and write")
    parser.add_argument("--render", action="store_true", help="only write the page")
    arguments = parser.parse_args()
    data = read(arguments.record)
    if not arguments.render:
        data = _try_all(arguments, data)
    if arguments.record == RECORD:
        PAGE.write_text(page(data), encoding="utf-8")
    for kind, rows in data["types"].items():
        right = sum(is_right(each) for each in rows.values())
        print(f"{kind}: {right} of {len(rows)} are right or refused by name")
    return 0


def _try_all(arguments: Any, data: dict[str, Any]) -> dict[str, Any]:
    warnings.simplefilter("ignore")
    import torch
    import transformers

    import mmzoo
    import mmzoo.training.trainer
    from mmzoo.common.progress import bar

    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    mmzoo.check(**recipe("causal", GPT2, "lora:2"), pretrained=False)  # imports what all need before the processes are forked
    gc.freeze()  # or each process would look through all that is imported whenever it collects garbage
    columns, wanted = tuple(arguments.column) or COLUMNS, []
    for kind in arguments.kind or ENTRIES:
        done = data["types"].setdefault(kind, {})
        for name in families(kind):
            again = arguments.again == "all" or (arguments.again == "faults" and name in done and not is_right(done[name]))
            if name in arguments.only or (not arguments.only and (again or not complete(done.get(name, {}), columns))):
                wanted.append((kind, name))
    data["versions"] = {"transformers": transformers.__version__, "torch": torch.__version__, "python": platform.python_version()}
    with bar("types", len(wanted)) as shown:
        for kind, name, results in run(wanted, jobs=arguments.jobs, columns=columns):
            kept = data["types"][kind].get(name, {}) if arguments.column and results.get("check") == OK else {}
            data["types"][kind][name] = {**kept, **results}
            shown.advance(note=f"{name}{'' if is_right(results) else ' *'}")
            data["types"][kind] = dict(sorted(data["types"][kind].items()))
            text = json.dumps(data, indent=1, ensure_ascii=False)
            unfinished = arguments.record.with_suffix(".partial")
            unfinished.write_text(text + "\n", encoding="utf-8")
            unfinished.replace(arguments.record)
    return data


if __name__ == "__main__":
    raise SystemExit(main())
