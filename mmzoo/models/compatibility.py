"""Check that parts are compatible: first from their classes, then on the meta device. Each refusal names what would fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mmzoo.errors import DoesNotFit, PluginBroken
from mmzoo.interfaces import Encoder, Example, Fusion, LanguageModel, Part
from mmzoo.interfaces.kinds import KINDS
from mmzoo.modalities.reader import NONE, TAKEN, is_modality, plural
from mmzoo.models.trainable import check_policy
from mmzoo.recipes.resolve import Resolved, resolve
from mmzoo.recipes.schema import Recipe
from mmzoo.registry import isolation
from mmzoo.registry.entries import Entry
from mmzoo.registry.hookspecs import PROJECT
from mmzoo.registry.manager import plugin_manager

MAX_IMPORTED = 50  # entries of installed plugins that are imported for one suggestion

Classes = Mapping[str, Resolved]
Parts = Mapping[str, Any]


def check_classes(resolved: Classes) -> None:
    """Check what the classes of the parts declare, before any configuration is fetched.

    Raises:
        PluginBroken: a class violates its interface. DoesNotFit: the parts are incompatible.
    """
    for check in (_check_bases, _check_modality, _check_architecture, _check_task):
        check(resolved)


def check_parts(resolved: Classes, parts: Parts, policies: Mapping[str, str]) -> None:
    """Check the parts on the meta device and their training policies, before any weight is fetched.

    Raises:
        DoesNotFit: the parts are incompatible, or one does not support its policy.
    """
    for check in (_check_instance_generates, _check_fusion, _check_context):
        check(resolved, parts)
    for kind, part in parts.items():
        check_policy(part, policies[kind], resolved[kind].entry.label, kind)


def check_data(recipe: Recipe, example: Example | None, where: str) -> None:
    """Check that the encoder accepts the inputs of an example of the data set ``where``, before anything is fetched.

    Raises:
        DoesNotFit: it does not; the message names what would fit.
    """
    encoder = resolve("encoder", recipe.encoder)
    accepted, present = getattr(encoder.cls, "modality", NONE), [] if example is None else example.modalities
    if accepted == NONE or not present or accepted in present:
        return
    raise _misfit(
        f"data set '{where}' holds {' and '.join(map(plural, present))}, and {encoder.entry.label} takes {plural(accepted)}.",
        _alternatives("encoder", lambda cls: cls.modality in present),
        _alternatives("dataset", lambda cls: cls.modality == accepted)
        + f" In your own files, put {plural(accepted)} into a column '{accepted}', or name the column with {accepted}_column.",
    )


def _check_bases(resolved: Classes) -> None:
    for kind, part in resolved.items():
        base, entry = KINDS[kind].base_class(), part.entry
        assert base is not None
        if not (isinstance(part.cls, type) and issubclass(part.cls, base)):
            raise PluginBroken(f"{entry.label} of plugin '{entry.plugin}': {entry.target} is not a mmzoo.api.{base.__name__}")


def _check_modality(resolved: Classes) -> None:
    encoder = resolved["encoder"]
    modality = encoder.cls.modality
    if not is_modality(modality):
        raise PluginBroken(
            f"{encoder.entry.label}: its modality is {modality!r}; it must be a name in small letters, digits and underscores, "
            f"and none of {', '.join(sorted(TAKEN))}"
        )
    if modality not in ("image", NONE) and encoder.cls.reader is Encoder.reader:
        raise PluginBroken(f"{encoder.entry.label} takes {plural(modality)} and opens images; give it a mmzoo.api.Reader")


def _check_architecture(resolved: Classes) -> None:
    language, fusion = resolved["language_model"], resolved["fusion"]
    architecture = language.cls.architecture
    for part in (fusion, resolved["task"]):
        supported = part.cls.architectures
        if architecture not in supported:
            raise _misfit(
                f"{part.entry.label} needs a {' or '.join(sorted(supported))} language model; "
                f"'{language.entry.name}' is {architecture}.",
                _alternatives("language_model", lambda cls, s=supported: cls.architecture in s and _supports(fusion.cls, cls)),
                _alternatives(part.entry.kind, lambda cls: architecture in cls.architectures),
            )


def _check_task(resolved: Classes) -> None:
    language, fusion, task = resolved["language_model"], resolved["fusion"], resolved["task"]
    if task.cls.needs_generation and not language.cls.generates:
        raise _misfit(
            f"{task.entry.label} generates text, and language model '{language.entry.name}' does not.",
            _alternatives("language_model", lambda cls: cls.generates and _supports(fusion.cls, cls)),
            _alternatives("task", lambda cls: not cls.needs_generation),
        )
    if fusion.cls.needs_decoder and not task.cls.needs_generation:
        raise _misfit(
            f"{fusion.entry.label} passes the image only to the decoder, and {task.entry.label} uses only the encoder.",
            _alternatives("task", lambda cls: cls.needs_generation),
            _alternatives("fusion", lambda cls: not cls.needs_decoder and language.cls.architecture in cls.architectures),
        )


def _check_instance_generates(resolved: Classes, parts: Parts) -> None:
    if resolved["task"].cls.needs_generation and not parts["language_model"].spec.generates:
        raise _misfit(
            f"{resolved['task'].entry.label} generates text, and this model of '{resolved['language_model'].entry.name}' cannot "
            "generate from embeddings, which images become; choose another model, or a task that does not generate"
        )


def _check_fusion(resolved: Classes, parts: Parts) -> None:
    label, encoder = resolved["fusion"].entry.label, resolved["encoder"].entry.name
    fusion, architecture = parts["fusion"], parts["language_model"].spec.architecture

    def others(fits: Callable[..., Any]) -> str:
        return _alternatives("fusion", lambda cls: fits(cls) and architecture in cls.architectures)

    if parts["encoder"].transform is not None and not fusion.places():
        raise _misfit(
            f"{label} ignores the features of encoder '{encoder}'.",
            others(lambda cls: cls.places()),
            "For text alone, use it with encoder 'none'.",
        )
    if fusion.tiles > 1 and parts["encoder"].modality != "image":
        raise _misfit(f"fusion.tiles: {label} cuts images into tiles, and encoder '{encoder}' takes no images")
    if fusion.needs_tokens and parts["encoder"].spec.tokens == 0:
        raise _misfit(
            f"{label} reads token features, and encoder '{encoder}' has only pooled features.",
            others(lambda cls: not cls.needs_tokens),
        )
    if fusion.needs_blocks and not parts["language_model"].spec.blocks:
        language = resolved["language_model"].entry.name
        raise _misfit(
            f"{label} attaches to the blocks of a language model, and '{language}' has no blocks that match its dim.",
            others(lambda cls: not cls.needs_blocks),
        )


def _check_context(resolved: Classes, parts: Parts) -> None:
    added, needed, context = parts["fusion"].added_tokens, parts["task"].positions, parts["language_model"].spec.max_length
    if added is not None and context is not None and added + needed > context:
        raise _misfit(
            f"{resolved['fusion'].entry.label} adds {added} tokens and {resolved['task'].entry.label} needs at least {needed}; "
            f"the context of '{resolved['language_model'].entry.name}' is {context}. Choose fewer tokens, a prefix or resampler "
            "fusion, a smaller task.max_new_tokens, or a longer context"
        )


def _misfit(problem: str, *fixes: str) -> DoesNotFit:
    """Return the error with a line for each way to fix the problem."""
    return DoesNotFit("\n".join([problem, *fixes]))


def _supports(fusion: type[Fusion], language: type[LanguageModel]) -> bool:
    """Return whether a fusion supports a language model as far as classes tell: the number of blocks depends on the instance."""
    return language.architecture in fusion.architectures and (not fusion.needs_blocks or language.blocks is not Part.blocks)


def _alternatives(kind: str, fits: Callable[..., Any]) -> str:
    """Return a sentence that names the entries of a kind whose class meets a condition.

    Entries of installed plugins are imported under a time limit, and only `MAX_IMPORTED` of them.
    """
    names, imported = [], 0
    for entry in plugin_manager().registry.entries(kind):
        foreign = entry.plugin != PROJECT
        imported += foreign
        if foreign and imported > MAX_IMPORTED:
            continue
        try:
            if fits(_load_limited(entry) if foreign else entry.load()):
                names.append(entry.name)
        except Exception:
            continue  # a broken entry of another plugin is not a suggestion
    label = KINDS[kind].label
    note = f" ({imported - MAX_IMPORTED} were not tried.)" if imported > MAX_IMPORTED else ""
    return (f"Each {label} that fits: {', '.join(names)}." if names else f"No registered {label} fits.") + note


def _load_limited(entry: Entry) -> Any:
    """Import an entry's class under the plugins' time limit."""
    outcome = isolation.run_limited(entry.load, isolation.read_timeout())
    if outcome.error is not None:
        raise outcome.error
    return outcome.value
