"""Define the hooks through which plugins register everything that can be chosen.

A plugin is a module, named by an entry point in the group ``mmzoo``, whose functions are marked with ``mmzoo.hookimpl``. It must
import fast and must not import torch: its hooks return *entries*, which are data. What an entry points to is imported when the
entry is used.

    # pyproject.toml of a plugin
    [project.entry-points.mmzoo]
    foo = "mmzoo_foo.plugin"

    # mmzoo_foo/plugin.py
    import mmzoo

    MMZOO_API = "1.0"  # the version of the API that it was written for; the default is 1.0

    @mmzoo.hookimpl
    def mmzoo_encoders():
        return [mmzoo.Entry("encoder", "foo", target="mmzoo_foo.encoder:Foo", summary="...", tiny={"width": 8})]

Either all entries of a plugin are registered or none: if one entry is wrong, the plugin is not used. A plugin is imported and
asked for its entries in a thread, and has 10 seconds for that (``MMZOO_PLUGIN_TIMEOUT``). Its hooks must not ask for the entries
of other plugins. If something goes wrong, the user sees one line and everything else works; `mmzoo doctor` shows the traceback.

Hooks are called with keyword arguments, and a hook may omit those that it does not use, so new arguments do not break plugins.
Hooks for entries return a list. Lifecycle hooks (`mmzoo_model_built`, `mmzoo_train_callbacks`, `mmzoo_card_sections`) are called
in the thread that builds or trains the model, without a time limit. One that raises or returns a wrong value is reported once and
skipped. Hook wrappers are refused: a plugin may add entries, not change those of others.
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
    """Return encoders, which turn an image (or an input of another modality) into features.

    ``target`` must be a subclass of `mmzoo.api.Encoder`. An encoder of another modality names it in ``modality``; its class
    brings a `mmzoo.api.Reader`, which opens files, such as audio clips.
    """


@hookspec
def mmzoo_fusions() -> Sequence[Entry]:  # type: ignore[empty-body]
    """Return fusions, which combine features with language. ``target`` must be a subclass of `mmzoo.api.Fusion`."""


@hookspec
def mmzoo_language_models() -> Sequence[Entry]:  # type: ignore[empty-body]
    """Return language models. ``target`` must be a subclass of `mmzoo.api.LanguageModel`."""


@hookspec
def mmzoo_tasks() -> Sequence[Entry]:  # type: ignore[empty-body]
    """Return tasks, which define collation, head, loss and prediction. ``target`` must be a subclass of `mmzoo.api.Task`."""


@hookspec
def mmzoo_datasets() -> Sequence[Entry]:  # type: ignore[empty-body]
    """Return data sets. ``target`` must be a subclass of `mmzoo.api.Dataset`."""


@hookspec
def mmzoo_metrics() -> Sequence[Entry]:  # type: ignore[empty-body]
    """Return metrics. ``target`` must be a subclass of `mmzoo.api.Metric`."""


@hookspec
def mmzoo_augmentations() -> Sequence[Entry]:  # type: ignore[empty-body]
    """Return augmentations, which change inputs at random in training. ``target`` must be a subclass of
    `mmzoo.api.Augmentation`, and ``modality`` that of the class.
    """


@hookspec
def mmzoo_recipes() -> Sequence[Entry]:  # type: ignore[empty-body]
    """Return recipes, which name the parts of a model. ``target`` must be a mapping with the fields of `mmzoo.Recipe`."""


@hookspec
def mmzoo_formats() -> Sequence[Entry]:  # type: ignore[empty-body]
    """Return formats, which read or write checkpoints of other code. ``target`` must be a subclass of `mmzoo.api.Format`."""


@hookspec
def mmzoo_model_built(model: Any) -> None:
    """Handle a `MultimodalModel` that was built or loaded, before the user gets it. The return value is ignored."""


@hookspec
def mmzoo_train_callbacks(recipe: Any) -> Sequence[Any]:  # type: ignore[empty-body]
    """Return `transformers.TrainerCallback` objects for the training of ``recipe`` (a `mmzoo.Recipe`).

    If an event of one raises, that is reported once and the training continues; `mmzoo.errors.TrainingError` ends the training.
    """


@hookspec
def mmzoo_card_sections(model: Any, run: dict[str, Any]) -> Sequence[tuple[str, str]]:  # type: ignore[empty-body]
    """Return sections for a model card, as pairs of a title and a Markdown text, computed from the recorded ``run`` only."""


@hookspec
def mmzoo_commands() -> Sequence[Entry]:  # type: ignore[empty-body]
    """Return commands of the command line: entries of kind ``command``. ``target`` must be a function for `typer`.

    If one has the name of a command of mmzoo itself, the whole plugin is refused.
    """
