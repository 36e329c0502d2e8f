"""Register the command ``mmzoo demo``."""

from mmzoo.api import Entry, hookimpl


@hookimpl
def mmzoo_commands():
    return [
        Entry(
            "command",
            "demo",
            target="mmzoo_demo.demo:demo",
            summary="Train, measure, reload and use a model on easy-VQA, in about two minutes",
            modality="image",
            license="Apache-2.0",
            source="easy-VQA, Zhou 2019, https://github.com/vzhou842/easy-VQA",
        )
    ]
