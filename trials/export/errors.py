"""The error of an export that is not the model it should be."""


class ExportError(RuntimeError):
    """An exported model that does not load, or differs from its student. Nothing was put in place."""
