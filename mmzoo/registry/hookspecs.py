"""The hooks through which everything that can be chosen comes in.

A plugin is a module, named by an entry point in the group ``mmzoo``, that marks functions with
``mmzoo.hookimpl``. It must import fast and must not import torch: hooks return *entries*, which are data;
what an entry points to is imported when the entry is built.

    # pyproject.toml of a plugin
    [project.entry-points.mmzoo]
    foo = "mmzoo_foo.plugin"

    # mmzoo_foo/plugin.py
    import mmzoo

    MMZOO_API = "1.0"  # the version of the API that it was written for; 1.0 if it says none

    @mmzoo.hookimpl
    def mmzoo_encoders():
        return [mmzoo.Entry("encoder", "foo", target="mmzoo_foo.encoder:Foo", summary="...", tiny={"width": 8})]

What a plugin's hooks return is taken whole or not at all: one bad entry and none of that plugin is registered. A plugin has 10
seconds (``MMZOO_PLUGIN_TIMEOUT``) to be imported and to return its entries, in a thread; it may not ask what other plugins bring.
Whatever goes wrong there is one line for the user, and everything else works; `mmzoo doctor` has the trace.

A hook takes its arguments by name and may leave out those that it does not use, so that arguments which are added break nobody.
Hooks of entries return a list. Lifecycle hooks (`mmzoo_model_built`, `mmzoo_train_callbacks`, `mmzoo_card_sections`) are called
in the thread that builds or trains, without a limit; one that raises or returns something else is told once and passed over.
Hook wrappers are refused: a plugin adds its own and changes nobody else's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from mmzoo.registry.entries import Entry

PROJECT = "mmzoo"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def mmzoo_encoders() -> Sequence[Entry]:  # type: ignore[empty-body]
    """Encoders: an image (or an input of another modality) to features. ``target`` is a subclass of `mmzoo.interfaces.encoder.Encoder`;
    one of audio says so in its ``modality`` and brings a `mmzoo.modalities.reader.Reader`, which opens clips."""


@hookspec
def mmzoo_fusions() -> Sequence[Entry]:  # type: ignore[empty-body]
    """Fusions: how features meet language. ``target`` is a subclass of `mmzoo.interfaces.fusion.Fusion`."""


@hookspec
def mmzoo_language_models() -> Sequence[Entry]:  # type: ignore[empty-body]
    """Language models. ``target`` is a subclass of `mmzoo.interfaces.language_model.LanguageModel`."""


@hookspec
def mmzoo_tasks() -> Sequence[Entry]:  # type: ignore[empty-body]
    """Tasks: collation, head, loss, prediction. ``target`` is a subclass of `mmzoo.interfaces.task.Task`."""


@hookspec
def mmzoo_datasets() -> Sequence[Entry]:  # type: ignore[empty-body]
    """Data sets. ``target`` is a subclass of `mmzoo.data.dataset.Dataset`."""


@hookspec
def mmzoo_metrics() -> Sequence[Entry]:  # type: ignore[empty-body]
    """Metrics. ``target`` is a subclass of `mmzoo.evaluation.metric.Metric`."""


@hookspec
def mmzoo_recipes() -> Sequence[Entry]:  # type: ignore[empty-body]
    """Recipes: named choices of parts. ``target`` is a mapping with the fields of `mmzoo.Recipe`."""


@hookspec
def mmzoo_formats() -> Sequence[Entry]:  # type: ignore[empty-body]
    """Checkpoints of other code, read or written. ``target`` is a subclass of `mmzoo.formats.format.Format`."""


@hookspec
def mmzoo_model_built(model: Any) -> None:
    """Called with every `MultimodalModel` that was built or loaded, before the user has it. What it returns is ignored."""


@hookspec
def mmzoo_train_callbacks(recipe: Any) -> Sequence[Any]:  # type: ignore[empty-body]
    """`transformers.TrainerCallback` objects to add to the training of ``recipe`` (a `mmzoo.Recipe`). An event of one that raises
    is told once and passed over; `mmzoo.errors.TrainingError` ends the training."""


@hookspec
def mmzoo_card_sections(model: Any, run: dict[str, Any]) -> Sequence[tuple[str, str]]:  # type: ignore[empty-body]
    """Sections to add to a model card: pairs of title and Markdown text, from the recorded ``run`` only."""


@hookspec
def mmzoo_commands() -> Sequence[Entry]:  # type: ignore[empty-body]
    """Commands of the command line: entries of kind ``command`` whose ``target`` is a function for `typer`. A name that is one of
    mmzoo's own commands is refused, with the whole plugin."""
