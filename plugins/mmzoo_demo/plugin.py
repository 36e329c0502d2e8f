"""The demonstration, as a command that a plugin brings in."""

import mmzoo


@mmzoo.hookimpl
def mmzoo_commands():
    return []
