"""The engine's own errors: one for a request that its sender can correct, and one that ends the engine. Introduced in chapter 1."""

from __future__ import annotations


class InvalidRequest(ValueError):
    """A request or an argument that cannot be served.

    The message names the field, the allowed values and the value that was given. `param` is the
    field's name, as in OpenAI's errors. `code` tells kinds of errors apart where a program needs
    to, for example "context_length_exceeded"; None otherwise.
    """

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param, self.code = param, code


class EngineDeadError(RuntimeError):
    """The engine cannot go on: every later step raises this, too. The message says what has ended it."""
