"""Every error the engine raises on purpose.

    HeadraceError
    ├── ConfigError       the operator asked for something that cannot be (models.yaml, flags, sizes)
    ├── ModelLoadError    a model's weights or files cannot be found, read or fitted
    ├── RequestError      one request cannot be served as asked; its neighbours are untouched
    └── EngineDeadError   the engine process has gone; every request it held is lost
        └── EngineStoppedError   because it was told to

Messages are written for the person who reads them: what was given, which limit it met, what to do.
They hold no traceback, address or secret.
"""


class HeadraceError(Exception):
    """Base of all deliberate errors; `str(error)` is fit to show."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(HeadraceError):
    """A setting is wrong. `hint` says how to mend it."""


class ModelLoadError(HeadraceError):
    """A model cannot be loaded. `hint` says what to do about it."""


class RequestError(HeadraceError):
    """One request is refused. `param` is the field of the request at fault, `code` OpenAI's error code."""

    def __init__(self, message: str, *, param: str | None = None, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class EngineDeadError(HeadraceError):
    """The engine process has ended; raised to everybody who waits for one of its outputs."""


class EngineStoppedError(EngineDeadError):
    """The engine process is being ended on purpose."""
