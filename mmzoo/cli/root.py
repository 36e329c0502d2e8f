"""Define the command group: mmzoo's commands, those of plugins, and errors as one message with an exit code."""

from __future__ import annotations

import functools
import inspect
import os
import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mmzoo import __version__
from mmzoo.cli.printing import fail, failing, json_alone, main_process_alone, speaking
from mmzoo.common.processes import is_everywhere
from mmzoo.common.sanitize import describe_error
from mmzoo.errors import MmzooError, PluginBroken
from mmzoo.recipes import catalogue
from mmzoo.registry.entries import Entry

# Depending on its version, typer uses click or its own copy of it, with other exception classes.
_UsageError: Any = typer.BadParameter.__base__


class _Group(TyperGroup):
    """List mmzoo's commands and those of plugins. A plugin's command is imported when it is called.

    Until then it is represented by a placeholder, so that no plugin can delay the help or print into it.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *(entry.name for entry in catalogue.entries("command"))]

    def get_command(self, ctx: Any, name: str) -> Any:
        if (own := super().get_command(ctx, name)) is not None:
            return own
        entry = _find(name)
        return None if entry is None else _typer_command(entry, lambda: None)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        entry = None if name in self.commands else _find(name)
        return name, command if entry is None else _command(entry), rest


def _find(name: str | None) -> Entry | None:
    return next((entry for entry in catalogue.entries("command") if entry.name == name), None)


def _command(entry: Entry) -> Any:
    """Return a plugin's command; if it is broken, a command that reports the error whatever its arguments are."""
    try:
        function = entry.load()
        if inspect.iscoroutinefunction(function):
            raise TypeError(f"{entry.target} is async, and nothing awaits it")
        return _typer_command(entry, _attributed(entry, function))
    except PluginBroken as error:
        message = str(error)
    except Exception as error:  # for example a signature that typer cannot read
        message = f"{entry.label} of plugin '{entry.plugin}' is not a function that typer accepts: {describe_error(error)}"

    def broken() -> None:
        raise PluginBroken(message)

    anything = {"ignore_unknown_options": True, "allow_extra_args": True}
    return _typer_command(entry, broken, add_help_option=False, context_settings=anything)


def _attributed(entry: Entry, function: Any) -> Any:
    """Return ``function`` with its errors reported as errors of its plugin, below the traceback that the author needs."""

    @functools.wraps(function)
    def run(*arguments: Any, **options: Any) -> Any:
        try:
            return function(*arguments, **options)
        except (MmzooError, OSError, typer.Exit, typer.Abort, _UsageError.__base__):  # `_run` reports these
            raise
        except Exception as error:
            traceback.print_exc()
            raise PluginBroken(f"{entry.label} of plugin '{entry.plugin}' failed: {describe_error(error)}") from error

    return run


def _typer_command(entry: Entry, function: Any, **more: Any) -> Any:
    single = typer.Typer(add_completion=False)
    single.command(entry.name, help=entry.summary, **more)(function)
    return typer.main.get_command(single)


app = typer.Typer(
    name="mmzoo",
    cls=_Group,
    no_args_is_help=True,
    help="Any encoder, any fusion, any language model.",
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        print(f"mmzoo {__version__}")
        raise typer.Exit


_VERSION_OPTION = typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")


@app.callback()
def _program(version: Annotated[bool, _VERSION_OPTION] = False) -> None:
    """Combine any encoder, any fusion and any language model."""


def main() -> None:
    """Run the command line. Every error of the package becomes one message and exit code 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # each of several processes would print torch's warnings
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    with main_process_alone(), speaking(), json_alone():
        code = _run()
    sys.exit(code if isinstance(code, int) else 0)


def _run() -> Any:
    try:
        return app(standalone_mode=False)
    except MmzooError as error:
        with failing(everywhere=is_everywhere(error)):
            fail(str(error))
    except _UsageError as error:
        with failing(everywhere=True):
            error.show()
    except _UsageError.__base__ as error:
        fail(error.format_message())
    except (typer.Abort, KeyboardInterrupt):
        fail("stopped")
        return 130
    except OSError as error:  # for example a full disk
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - the interpreter flushes stdout at exit
        if isinstance(error, BrokenPipeError):
            return 1
        with failing(everywhere=is_everywhere(error)):
            fail(str(error))
    return 2
