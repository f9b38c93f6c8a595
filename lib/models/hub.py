"""Checkpoint folders from the Hugging Face hub, and which failures mean that the hub cannot be reached.

Introduced in chapter 1.
"""

from __future__ import annotations

from pathlib import Path

_PATTERNS = ["*.json", "*.safetensors", "tokenizer*", "vocab*", "merges.txt", "*.jinja"]
# The base classes of what the hub's HTTP clients (httpx; requests in older versions) raise where no answer came.
_NO_ANSWER = {"TransportError", "ConnectionError", "Timeout"}


class HubUnreachable(FileNotFoundError):
    """The hub gives no answer (no network, offline mode, server down), and its cache here lacks the model."""


def download(hub_id: str) -> Path:
    """The folder of `hub_id` in the hub's cache, fetched first if need be.

    Raises HubUnreachable; FileNotFoundError where the hub refuses the name (401, 403, 404);
    OSError with its reason for anything else, such as a full disk or a damaged file.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=_PATTERNS, etag_timeout=5))
    except Exception as error:
        failure = _explained(hub_id, error)
        if not isinstance(failure, HubUnreachable):
            raise failure from error
    try:  # the connection failed: a complete copy that an earlier run fetched is as good
        return Path(snapshot_download(hub_id, allow_patterns=_PATTERNS, local_files_only=True))
    except FileNotFoundError:
        raise failure from None
    except Exception as error:
        raise _explained(hub_id, error) from error


def _explained(hub_id: str, error: Exception) -> OSError:
    """The error that `download` raises for one of the hub client's."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    reason = f"{type(error).__name__}: {(str(error) or 'no reason given').splitlines()[0][:200]}"
    if _is_unreachable(error):
        return HubUnreachable(f"the Hugging Face hub cannot be reached: {reason}")
    if isinstance(_cause(error), (HfHubHTTPError, HFValidationError)):
        return FileNotFoundError(f"the Hugging Face hub refuses {hub_id!r}: {reason}")
    message = f"{hub_id!r} cannot be fetched from the Hugging Face hub: {reason}"
    if isinstance(error, OSError) and error.errno is not None:  # PermissionError stays one
        return OSError(error.errno, message)
    return OSError(message)


def _cause(error: BaseException) -> BaseException:
    """The error behind "not in the cache": the hub's client looks there after any failure."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        return _cause(error.__cause__)
    return error


def _is_unreachable(error: BaseException) -> bool:
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    error = _cause(error)
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500
    return isinstance(error, (LocalEntryNotFoundError, ConnectionError, TimeoutError)) or any(
        kind.__name__ in _NO_ANSWER for kind in type(error).__mro__
    )
