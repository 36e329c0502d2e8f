"""Check that parts are compatible: first from their classes, then on the meta device. Each refusal names what would fit."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import nn

from mmzoo.errors import BadRecipe, DoesNotFit, PluginBroken
from mmzoo.interfaces import CAUSAL, SEQ2SEQ, Encoder, Example, Fusion, LanguageModel, Part
from mmzoo.interfaces.kinds import KINDS, kind_of
from mmzoo.modalities.reader import NONE, TAKEN, is_modality, plural
from mmzoo.models.trainable import check_policy
from mmzoo.recipes.resolve import Resolved, resolve
from mmzoo.recipes.schema import Recipe
from mmzoo.recipes.shape import ALL
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
    for check in (_check_bases, _check_modality, _check_joint, _check_architecture, _check_task):
        check(resolved)


def check_parts(recipe: Recipe, resolved: Classes, parts: Parts, policies: Mapping[str, str]) -> None:
    """Check the parts on the meta device and their training policies, before any weight is fetched.

    Raises:
        DoesNotFit: the parts are incompatible, or one does not support its policy.
    """
    for check in (_check_instance_generates, _check_fusion, _check_inputs, _check_context):
        check(resolved, parts)
    for key, part in parts.items():
        check_policy(part, policies[key], resolved[key].entry.label, recipe.label(key))


def check_data(recipe: Recipe, example: Example | None, where: str) -> None:
    """Check that the encoders accept the inputs of an example of the data set ``where``, before anything is fetched.

    Raises:
        DoesNotFit: no encoder takes an input that the example has; the message names what would fit.
    """
    if example is None:
        return
    encoders = {name: resolve("encoder", part) for name, part in recipe.encoders.items()}
    accepted = {getattr(encoder.cls, "modality", NONE) for encoder in encoders.values()}
    present = example.modalities
    if NONE not in accepted and present and not accepted & set(present):
        label = " and ".join(encoder.entry.label for encoder in encoders.values())
        takes = " and ".join(plural(modality) for modality in sorted(accepted))
        verb = "takes" if len(encoders) == 1 else "take"
        raise _misfit(
            f"data set '{where}' holds {' and '.join(map(plural, present))}, and {label} {verb} {takes}.",
            _alternatives("encoder", lambda cls: cls.modality in present),
            _alternatives("dataset", lambda cls: cls.modality in accepted)
            + f" In your own files, put {takes} into a column '{min(accepted)}', or name the column with {min(accepted)}_column.",
        )


def _of_kind(kind: str, parts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of a kind by name."""
    return {key.partition(".")[2] or key: part for key, part in parts.items() if kind_of(key) == kind}


def _check_bases(resolved: Classes) -> None:
    for key, part in resolved.items():
        base, entry = KINDS[kind_of(key)].base_class(), part.entry
        assert base is not None
        if not (isinstance(part.cls, type) and issubclass(part.cls, base)):
            raise PluginBroken(f"{entry.label} of plugin '{entry.plugin}': {entry.target} is not a mmzoo.api.{base.__name__}")


def _check_modality(resolved: Classes) -> None:
    for name, encoder in _of_kind("encoder", resolved).items():
        modality = encoder.cls.modality
        if not is_modality(modality):
            raise PluginBroken(
                f"{encoder.entry.label}: its modality is {modality!r}; it must be a name in small letters, digits and "
                f"underscores, and none of {', '.join(sorted(TAKEN))}"
            )
        if modality not in ("image", NONE) and encoder.cls.reader is Encoder.reader:
            raise PluginBroken(f"{encoder.entry.label} takes {plural(modality)} and opens images; give it a mmzoo.api.Reader")
        # Joint fusions keep parts by these names, and predictions vectors.
        if name == "text" or hasattr(nn.ModuleDict(), name) or hasattr(nn.ParameterDict(), name):
            raise BadRecipe(f"encoders.{name}: this name is reserved; choose another, such as {modality}_{name}")


def _check_joint(resolved: Classes) -> None:
    encoders, architecture = _of_kind("encoder", resolved), resolved["language_model"].cls.architecture
    for name, fusion in _of_kind("fusion", resolved).items():
        if fusion.cls.joint and (len(encoders) == 1 or name != ALL):
            only = f"there is only one, '{next(iter(encoders))}'" if len(encoders) == 1 else "it is given to one at a time"
            fix = "Add an encoder" if len(encoders) == 1 else f"Write it once, for all: fusion: {fusion.entry.name}"
            raise _misfit(
                f"{fusion.entry.label} reads the features of several encoders together, and {only}.",
                f"{fix}; or choose a fusion of one encoder.",
                _alternatives("fusion", lambda cls: not cls.joint and architecture in cls.architectures and cls.places()),
            )


def _check_architecture(resolved: Classes) -> None:
    language, fusions = resolved["language_model"], _of_kind("fusion", resolved)
    architecture = language.cls.architecture

    def runs(cls: Any, supported: Collection[str]) -> bool:
        return cls.architecture in supported and all(_supports(fusion.cls, cls) for fusion in fusions.values())

    for part in (*fusions.values(), *_of_kind("task", resolved).values()):
        supported = part.cls.architectures
        if architecture not in supported:
            raise _misfit(
                f"{part.entry.label} needs a {' or '.join(sorted(supported))} language model; "
                f"'{language.entry.name}' is {architecture}.",
                _alternatives("language_model", lambda cls, s=supported: runs(cls, s)),
                _alternatives(
                    part.entry.kind,
                    lambda cls, p=part: (
                        architecture in cls.architectures and getattr(cls, "joint", False) == getattr(p.cls, "joint", False)
                    ),
                ),
            )


def _check_task(resolved: Classes) -> None:
    language, fusions = resolved["language_model"], _of_kind("fusion", resolved)
    for task in _of_kind("task", resolved).values():
        if task.cls.needs_generation and not language.cls.generates:
            raise _misfit(
                f"{task.entry.label} generates text, and language model '{language.entry.name}' does not.",
                _alternatives(
                    "language_model", lambda cls: cls.generates and all(_supports(f.cls, cls) for f in fusions.values())
                ),
                _alternatives("task", lambda cls: not cls.needs_generation),
            )
        for fusion in fusions.values():
            if fusion.cls.changes_text and task.cls.needs_generation and language.cls.architecture == CAUSAL:
                joint = fusion.cls.joint
                raise _misfit(
                    f"{fusion.entry.label} changes the text's embeddings, which a causal language model cannot do for the text "
                    f"that {task.entry.label} generates.",
                    _alternatives("language_model", lambda cls: cls.generates and cls.architecture == SEQ2SEQ),
                    _alternatives(
                        "fusion", lambda cls, j=joint: cls.joint == j and not cls.changes_text and CAUSAL in cls.architectures
                    ),
                    _alternatives("task", lambda cls: not cls.needs_generation),
                )
            if fusion.cls.needs_decoder and not task.cls.needs_generation:
                raise _misfit(
                    f"{fusion.entry.label} passes the input only to the decoder, and {task.entry.label} uses only the encoder.",
                    _alternatives("task", lambda cls: cls.needs_generation),
                    _alternatives("fusion", lambda cls: not cls.needs_decoder and language.cls.architecture in cls.architectures),
                )


def _check_instance_generates(resolved: Classes, parts: Parts) -> None:
    for task in _of_kind("task", resolved).values():
        if task.cls.needs_generation and not parts["language_model"].spec.generates:
            raise _misfit(
                f"{task.entry.label} generates text, and this model of '{resolved['language_model'].entry.name}' cannot "
                "generate from embeddings, which images become; choose another model, or a task that does not generate"
            )


def check_end(tasks: Mapping[str, Any], language_model: Any, label: str) -> None:
    """Check that a tokenizer names the token with which tasks end a text, if one of them generates.

    Raises:
        DoesNotFit: it names none.
    """
    writing = next((name for name, task in tasks.items() if task.needs_generation), None)
    if writing is not None and language_model.tokenizer.eos_token_id is None:
        raise _misfit(
            f"task '{writing}' generates text, and the tokenizer of {label} names no end token, so that no text would end.",
            "Set eos_token in its tokenizer_config.json or eos_token_id in config.json, or choose another with "
            "language_model.tokenizer.",
        )


def _check_fusion(resolved: Classes, parts: Parts) -> None:
    encoders, classes = _of_kind("encoder", parts), _of_kind("encoder", resolved)
    for name, fusion in _of_kind("fusion", parts).items():
        label = resolved[f"fusions.{name}"].entry.label
        for encoder in encoders if name == ALL else [name]:
            _check_pair(label, fusion, encoders[encoder], classes[encoder].entry.name, resolved, parts)


def _check_pair(label: str, fusion: Any, encoder: Any, name: str, resolved: Classes, parts: Parts) -> None:
    """Check a fusion with one of the encoders that it reads, and with the language model."""
    spec = parts["language_model"].spec

    def others(fits: Callable[..., Any]) -> str:
        return _alternatives(
            "fusion", lambda cls: fits(cls) and cls.joint == fusion.joint and spec.architecture in cls.architectures
        )

    # A task that compares inputs with texts reads the features itself.
    fused = not all(task.cls.needs_input for task in _of_kind("task", resolved).values())
    if encoder.transform is not None and not fusion.places() and fused:
        raise _misfit(
            f"{label} ignores the features of encoder '{name}'.",
            others(lambda cls: cls.places()),
            "For text alone, use it with encoder 'none'.",
        )
    if fusion.tiles > 1 and encoder.modality != "image":
        raise _misfit(f"fusion.tiles: {label} cuts images into tiles, and encoder '{name}' takes no images")
    if fusion.needs_tokens and encoder.spec.tokens == 0:
        raise _misfit(
            f"{label} reads token features, and encoder '{name}' has only pooled features.",
            others(lambda cls: not cls.needs_tokens),
        )
    if fusion.needs_blocks and not spec.blocks:
        language = resolved["language_model"].entry.name
        raise _misfit(
            f"{label} attaches to the blocks of a language model, and '{language}' has no blocks that match its dim.",
            others(lambda cls: not cls.needs_blocks),
        )


def _check_inputs(resolved: Classes, parts: Parts) -> None:
    if any(encoder.transform is not None for encoder in _of_kind("encoder", parts).values()):
        return
    for task in _of_kind("task", resolved).values():
        if task.cls.needs_input:
            raise _misfit(
                f"{task.entry.label} compares texts with inputs, and no encoder has an input.",
                _alternatives("encoder", lambda cls: cls.modality != NONE),
                _alternatives("task", lambda cls: not cls.needs_input),
            )


def _check_context(resolved: Classes, parts: Parts) -> None:
    fusions, tasks, context = _of_kind("fusion", parts), _of_kind("task", parts), parts["language_model"].spec.max_length
    counts = {name: fusion.added_tokens for name, fusion in fusions.items()}
    needed, task = max((part.positions, name) for name, part in tasks.items())
    if context is None or None in counts.values() or (added := sum(counts.values())) + needed <= context:
        return
    labels = " and ".join(resolved[f"fusions.{name}"].entry.label for name, count in counts.items() if count)
    raise _misfit(
        f"{labels} {'adds' if len(counts) == 1 else 'add'} {added} tokens and {resolved[f'tasks.{task}'].entry.label} needs at "
        f"least {needed}; the context of '{resolved['language_model'].entry.name}' is {context}. Choose fewer tokens, a prefix "
        "or resampler fusion, a smaller task.max_new_tokens, or a longer context"
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
