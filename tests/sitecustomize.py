"""Python imports this file at the start of every process that a test starts: it gives them the backbone `tiny`.

`conftest` puts this folder on PYTHONPATH.
"""

from contextlib import suppress

with suppress(ModuleNotFoundError):  # a process that has nothing to do with finetune
    import tiny_network  # noqa: F401
