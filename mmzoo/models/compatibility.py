"""The fit check: what is refused from classes, and from parts on the meta device, each time with what would fit."""

from __future__ import annotations

from functools import partial
from typing import Any

from mmzoo.errors import DoesNotFit, PluginBroken
from mmzoo.interfaces.encoder import Encoder
from mmzoo.interfaces.example import Example
from mmzoo.interfaces.fusion import Fusion
from mmzoo.interfaces.kinds import KINDS, PARTS
from mmzoo.interfaces.language_model import LanguageModel
from mmzoo.interfaces.part import Part
from mmzoo.modalities.reader import NONE, TAKEN, is_modality, plural
from mmzoo.models.trainable import check_policy
from mmzoo.recipes.resolve import Resolved, resolve
from mmzoo.recipes.schema import Recipe
from mmzoo.registry import isolation
from mmzoo.registry.entries import Entry
from mmzoo.registry.hookspecs import PROJECT
from mmzoo.registry.manager import plugin_manager

MAX_STRANGERS = 50  # whose classes a suggestion looks at


def check_classes(found: dict[str, Resolved]) -> None:
    """What can be refused from the classes alone, before any configuration is fetched."""
    for kind, resolved in found.items():
        base = KINDS[kind].base_class()
        assert base is not None
        if not (isinstance(resolved.cls, type) and issubclass(resolved.cls, base)):
            raise PluginBroken(
                f"{resolved.entry.label} of plugin '{resolved.entry.plugin}': {resolved.entry.target} is no "
                f"mmzoo.api.{base.__name__}"
            )
    encoder, fusion, language, task = (found[kind] for kind in PARTS)
    modality = encoder.cls.modality
    if not is_modality(modality):
        raise PluginBroken(
            f"{encoder.entry.label}: its modality is {modality!r}; it is a name in small letters, digits and underscores "
            f"that is none of {', '.join(sorted(TAKEN))}"
        )
    if modality not in ("image", NONE) and encoder.cls.reader is Encoder.reader:
        raise PluginBroken(f"{encoder.entry.label} takes {plural(modality)} and opens images; give it a mmzoo.api.Reader")
    architecture = language.cls.architecture
    for part in (fusion, task):
        architectures = part.cls.architectures
        if architecture not in architectures:
            raise DoesNotFit(
                f"{part.entry.label} needs a {' or '.join(sorted(architectures))} language model; '{language.entry.name}' is {architecture}.\n"
                + _instead(
                    "language_model", lambda cls, wanted=architectures: cls.architecture in wanted and _serves(fusion.cls, cls)
                )
                + "\n"
                + _instead(part.entry.kind, lambda cls: architecture in cls.architectures)
            )
    if task.cls.needs_generation and not language.cls.generates:
        raise DoesNotFit(
            f"{task.entry.label} generates text, and language model '{language.entry.name}' does not.\n"
            + _instead("language_model", lambda cls: cls.generates and _serves(fusion.cls, cls))
            + "\n"
            + _instead("task", lambda cls: not cls.needs_generation)
        )
    if fusion.cls.needs_decoder and not task.cls.needs_generation:
        raise DoesNotFit(
            f"{fusion.entry.label} gives the image to the decoder alone, and {task.entry.label} reads the encoder.\n"
            + _instead("task", lambda cls: cls.needs_generation)
            + "\n"
            + _instead("fusion", lambda cls: not cls.needs_decoder and architecture in cls.architectures)
        )


def check_data(recipe: Recipe, example: Example | None, where: str) -> None:
    """Check that the encoder takes what an example of the data set ``where`` has, before anything is fetched.

    Raises:
        DoesNotFit: naming what would fit.
    """
    encoder = resolve("encoder", recipe.encoder)
    wanted, given = getattr(encoder.cls, "modality", NONE), [] if example is None else example.modalities
    if wanted == NONE or not given or wanted in given:
        return
    raise DoesNotFit(
        f"data set '{where}' holds {' and '.join(map(plural, given))}, and {encoder.entry.label} takes {plural(wanted)}.\n"
        + _instead("encoder", lambda cls: cls.modality in given)
        + "\n"
        + _instead("dataset", lambda cls: cls.modality == wanted)
        + f" In files of your own, {plural(wanted)} stand in a column '{wanted}', or the one that {wanted}_column names."
    )


def _serves(fusion: type[Fusion], language: type[LanguageModel]) -> bool:
    """Whether a fusion serves a language model, as far as classes tell: which blocks it has, only its instance knows."""
    return language.architecture in fusion.architectures and (not fusion.needs_blocks or language.blocks is not Part.blocks)


def check_parts(found: dict[str, Resolved], parts: dict[str, Any], policies: dict[str, str]) -> None:
    """What can be refused from the parts on the meta device, before any weight is fetched."""
    encoder, fusion, language = parts["encoder"], parts["fusion"], parts["language_model"]
    name, spec = found["fusion"].entry.label, language.spec
    if found["task"].cls.needs_generation and not spec.generates:
        raise DoesNotFit(
            f"{found['task'].entry.label} generates text, and this model of '{found['language_model'].entry.name}' cannot from "
            "embeddings, which images become; choose another one, or a task that reads"
        )
    if encoder.transform is not None and not fusion.places():
        raise DoesNotFit(
            f"{name} leaves the features of encoder '{found['encoder'].entry.name}' out.\n"
            + _instead("fusion", lambda cls: cls.places() and spec.architecture in cls.architectures)
            + "\nFor text alone, encoder 'none' goes with it."
        )
    if fusion.tiles > 1 and encoder.modality != "image":
        raise DoesNotFit(f"fusion.tiles: {name} cuts images into pieces, and encoder '{found['encoder'].entry.name}' takes none")
    if fusion.needs_tokens and encoder.spec.tokens == 0:
        raise DoesNotFit(
            f"{name} reads token features, and encoder '{found['encoder'].entry.name}' gives pooled ones only.\n"
            + _instead("fusion", lambda cls: not cls.needs_tokens and spec.architecture in cls.architectures)
        )
    if fusion.needs_blocks and not spec.blocks:
        raise DoesNotFit(
            f"{name} attaches to the blocks of a language model, and '{found['language_model'].entry.name}' has none of its dim "
            "that can be found.\n"
            + _instead("fusion", lambda cls: not cls.needs_blocks and spec.architecture in cls.architectures)
        )
    added, needed = fusion.added_tokens, parts["task"].positions
    if added is not None and spec.max_length is not None and added + needed > spec.max_length:
        raise DoesNotFit(
            f"{name} adds {added} tokens and {found['task'].entry.label} needs {needed} at least; the context of "
            f"'{found['language_model'].entry.name}' is {spec.max_length}. Choose fewer tokens, a prefix or resampler fusion, "
            "a smaller task.max_new_tokens, or a longer context"
        )
    for kind, part in parts.items():
        check_policy(part, policies[kind], found[kind].entry.label, kind)


def _instead(kind: str, fits: Any) -> str:
    """Which entries of a kind would fit, in words. Of strangers' entries only some are imported for that, and not for long."""
    names, strangers, untried = [], 0, 0
    for entry in plugin_manager().registry.entries(kind):
        load = entry.load
        if entry.plugin != PROJECT:
            strangers += 1
            if strangers > MAX_STRANGERS:
                untried += 1
                continue
            load = partial(_load_limited, entry)
        try:
            if fits(load()):
                names.append(entry.name)
        except Exception:
            continue  # another plugin's broken entry is no suggestion
    words = kind.replace("_", " ")
    rest = f" ({untried} were not tried.)" if untried else ""
    return (f"Each {words} that fits: {', '.join(names)}." if names else f"No registered {words} fits.") + rest


def _load_limited(entry: Entry) -> Any:
    outcome = isolation.run_limited(entry.load, isolation.read_timeout())
    if outcome.error is not None:
        raise outcome.error
    return outcome.value
