"""Parse the command line, call the package, and print. Each file has one group of commands, which are added to ``app``.

Exit codes: 0 success, 1 the answer is no, 2 wrong input (with one message on stderr), 130 and 143 stopped by a signal.
"""

# Importing a file hangs its commands on the app, and `mmzoo --help` lists them in this order.
# isort: off
from mmzoo.cli.root import app, main
from mmzoo.cli import browse, work, share, plugin  # noqa: F401

__all__ = ["app", "main"]
