"""Every error that the package raises on purpose.

Each says what is wrong, why, and what to do about it. On the command line all of them end the program
with exit code 2 and one message on stderr, so a message must stand on its own, without a traceback.
"""

from __future__ import annotations


class MmzooError(Exception):
    """The base of every error of this package."""


class UnknownName(MmzooError):
    """A name that no plugin registered; the message suggests the nearest ones."""


class DuplicateName(MmzooError):
    """Two plugins claim one name; the message names both distributions."""


class PluginBroken(MmzooError):
    """A plugin that could not be loaded, or that broke its contract when it was used."""


class BadPlugin(MmzooError):
    """A plugin that cannot be written: a name that no package can have, or a folder that exists."""


class ContractBroken(MmzooError):
    """A plugin that fails the conformance kit: for each check the contract, what happened, and where it is documented."""


class SettingsError(MmzooError):
    """An environment variable or the configuration file says something that cannot be used."""


class PluginWarning(UserWarning):
    """A plugin that is not in use, or whose hook failed: the rest works without it."""


class BadRecipe(MmzooError):
    """An unknown option, a wrong type or an unreadable recipe; the message names the recipe's key."""


class DoesNotFit(MmzooError):
    """Parts that cannot work together; the message says why and which entries would fit."""


class DataError(MmzooError):
    """A data set that cannot be used: empty, without a column, or with a value that is not allowed."""


class BadInput(DataError):
    """An input of an encoder, such as an image or a clip, that is missing, truncated or nothing of the kind."""


class BadImage(BadInput):
    """An image that is missing, truncated or no image at all."""


class CheckpointError(MmzooError):
    """A checkpoint, of this package or of other code, that is missing something, was altered, or is of another format."""


class MissingPlugin(CheckpointError):
    """A checkpoint that needs a plugin which is not installed; the message has the pip command."""


class SourceError(MmzooError):
    """A backbone, tokenizer or data set that could not be fetched or read from its source."""


class HubError(MmzooError):
    """A hub that cannot be reached, refuses, or has no such repository or revision; the message says what to do."""


class TrainingError(MmzooError):
    """Training that cannot start or cannot go on."""


class FeatureCacheError(MmzooError):
    """A feature cache that was damaged, was made by another encoder, or cannot be written."""
