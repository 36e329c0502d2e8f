"""Run mmzoo commands in this process: a new one would import torch each time."""

import io
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from types import SimpleNamespace
from unittest.mock import patch

from mmzoo.cli import main


def run(*arguments, code=0, cwd=None):
    """The command line as the program `mmzoo` runs it, but in this process: importing torch takes seconds."""
    out, err = io.StringIO(), io.StringIO()
    status = 0
    with (
        redirect_stdout(out),
        redirect_stderr(err),
        chdir(cwd or "."),
        patch.object(sys, "argv", ["mmzoo", *map(str, arguments)]),
    ):
        try:
            main()
        except SystemExit as end:
            status = end.code or 0
    assert "Traceback" not in err.getvalue(), err.getvalue()
    assert status == code, err.getvalue()
    return SimpleNamespace(stdout=out.getvalue(), stderr=err.getvalue())
