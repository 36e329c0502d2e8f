"""Define every error that mmzoo raises on purpose.

    MmzooError
    ├── UnknownName             no plugin registered this name
    ├── DuplicateName           two plugins register the same name
    ├── PluginBroken            a plugin cannot be loaded, or breaks the contract
    │   ├── PluginTimeout       it takes longer than its time limit
    │   └── PluginRefused       it needs another version of mmzoo, or ends the process
    ├── BadPlugin               `mmzoo plugin new` cannot write this plugin
    ├── ContractBroken          a plugin fails `mmzoo plugin check`
    ├── SettingsError           an environment variable or the configuration file is wrong
    ├── BadRecipe               a recipe has an unknown key or a wrong value
    ├── DoesNotFit              parts cannot work together
    ├── DataError               a data set cannot be used
    │   └── BadInput            an input of one example cannot be read
    │       └── BadImage        an image cannot be read
    ├── CheckpointError         a checkpoint is incomplete, altered or of another format
    │   └── MissingPlugin       it needs a plugin that is not in use
    ├── SourceError             weights, a tokenizer or data cannot be fetched
    ├── HubError                a hub refuses or cannot be reached
    ├── TrainingError           training cannot start or continue
    └── FeatureCacheError       a feature cache is damaged or cannot be written

    PluginWarning               (a UserWarning) a plugin or one of its hooks is skipped

Each message says what is wrong, why, and how to fix it. The command line prints it on stderr without a traceback and exits with
code 2, so a message must be complete in itself.
"""

from __future__ import annotations


class MmzooError(Exception):
    """Serve as the base class of all errors of mmzoo."""


class UnknownName(MmzooError):
    """Report a name that no plugin registered; the message suggests similar ones."""


class DuplicateName(MmzooError):
    """Report two plugins that register the same name; the message names both distributions."""


class PluginBroken(MmzooError):
    """Report a plugin that cannot be loaded, or that breaks the contract when it is used."""


class PluginTimeout(PluginBroken):
    """Report a plugin that takes longer than its time limit."""


class PluginRefused(PluginBroken):
    """Report a plugin that needs another version of mmzoo, or ends the process; ``fix`` is the command that fixes it."""

    def __init__(self, message: str, fix: str) -> None:
        super().__init__(message)
        self.fix = fix


class BadPlugin(MmzooError):
    """Report a plugin that cannot be written: its name is not allowed for a package, or its folder exists."""


class ContractBroken(MmzooError):
    """Report a plugin that fails the conformance kit: for each check the contract, what happened, and its documentation."""


class SettingsError(MmzooError):
    """Report an environment variable or a configuration file with a value that is not allowed."""


class PluginWarning(UserWarning):
    """Warn of a plugin that is not in use, or of a hook that failed; everything else works without it."""


class BadRecipe(MmzooError):
    """Report a recipe that cannot be read, or has an unknown option or a wrong type; the message names the key."""


class DoesNotFit(MmzooError):
    """Report parts that cannot work together; the message says why, and which entries would fit."""


class DataError(MmzooError):
    """Report a data set that cannot be used: it is empty, lacks a column, or holds a value that is not allowed."""


class BadInput(DataError):
    """Report an input of an encoder, such as an image or a clip, that is missing, truncated or of another type."""


class BadImage(BadInput):
    """Report an image that is missing, truncated or not an image."""


class CheckpointError(MmzooError):
    """Report a checkpoint, of mmzoo or of other code, that is incomplete, altered or of another format."""


class MissingPlugin(CheckpointError):
    """Report a checkpoint that needs a plugin which is not in use; the message has the command that fixes it."""


class SourceError(MmzooError):
    """Report a backbone, tokenizer or data set that cannot be fetched or read from its source."""


class HubError(MmzooError):
    """Report a hub that cannot be reached, refuses, or lacks the repository or revision; the message says what to do."""


class TrainingError(MmzooError):
    """Report a training that cannot start or cannot continue."""


class FeatureCacheError(MmzooError):
    """Report a feature cache that is damaged, belongs to another encoder, or cannot be written."""
