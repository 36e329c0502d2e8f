"""The command line: parse, call, print; nothing else. A file a group of commands; ``app`` is what they hang on.

Exit codes: 0 well, 1 the answer is no, 2 wrong input (one message on stderr), 130 and 143 stopped by a signal.
"""

# Importing a file hangs its commands on the app, and `mmzoo --help` lists them in this order.
# isort: off
from mmzoo.cli.root import app, main
from mmzoo.cli import browse, work, exchange, share, packing, plugin, author, doctor  # noqa: F401

__all__ = ["app", "main"]
