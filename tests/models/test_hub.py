"""What a failing hub means: random weights for GPT-2 only where no answer came, else an error with its reason."""

from __future__ import annotations

import errno
from dataclasses import replace

import httpx
import huggingface_hub
import pytest
from huggingface_hub import errors

from lib.models import checkpoint
from lib.models.checkpoint import RandomWeightsWarning, load_model
from tests.helpers import gpt2_checkpoint

REQUEST = httpx.Request("GET", "https://huggingface.co/api/models/gpt2")


def http(status: int, kind: type = errors.HfHubHTTPError) -> Exception:
    return kind(f"{status} from the hub", response=httpx.Response(status, request=REQUEST))


def not_cached(cause: Exception | None) -> Exception:
    """What snapshot_download raises after a failure, once it has looked into its cache."""
    error = errors.LocalEntryNotFoundError("no snapshot folder on the local disk")
    error.__cause__ = cause
    return error


UNREACHABLE = {
    "offline": errors.OfflineModeIsEnabled("offline mode"),
    "not-cached": not_cached(None),
    "not-cached-offline": not_cached(errors.OfflineModeIsEnabled("offline mode")),
    "incomplete-copy": errors.IncompleteSnapshotError("files are missing", "/nowhere"),
    "connect": httpx.ConnectError("name resolution failed"),
    "timeout": httpx.ReadTimeout("too slow"),
    "broken-off": httpx.RemoteProtocolError("peer closed the connection"),
    "refused": ConnectionRefusedError(111, "Connection refused"),
    "server-down": http(503),
    "server-down-not-cached": not_cached(http(504)),
}
ERRORS = {
    "disk-full": (OSError(errno.ENOSPC, "No space left on device"), OSError, "No space left"),
    "permission": (PermissionError(errno.EACCES, "denied"), PermissionError, "denied"),
    "corrupted": (OSError("Consistency check failed: 5 bytes, not 6"), OSError, "Consistency"),
    "broken-code": (RuntimeError("xet: bad chunk"), OSError, "RuntimeError: xet: bad chunk"),
    "401": (http(401, errors.RepositoryNotFoundError), FileNotFoundError, "401 from the hub"),
    "403": (http(403, errors.GatedRepoError), FileNotFoundError, "403 from the hub"),
    "403-not-cached": (not_cached(http(403)), FileNotFoundError, "refuses .*"),
    "404": (http(404, errors.RepositoryNotFoundError), FileNotFoundError, "404 from the hub"),
    "disk-full-not-cached": (
        not_cached(OSError(errno.ENOSPC, "No space left on device")),
        OSError,
        "cannot be fetched",
    ),
}


@pytest.fixture
def hub(monkeypatch):
    """`hub(error or folder, ...)`: what snapshot_download does at each call; the last one from then on."""

    def install(*answers):
        left = list(answers)

        def snapshot_download(hub_id, **options):
            answer = left.pop(0) if len(left) > 1 else left[0]
            if isinstance(answer, Exception):
                raise answer
            return str(answer)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)

    return install


@pytest.mark.parametrize("error", UNREACHABLE.values(), ids=UNREACHABLE)
def test_without_an_answer_gpt2_is_random_and_says_why(hub, error, monkeypatch):
    hub(error)
    small = {"num_layers": 1, "vocab_size": 7, "max_position_embeddings": 8}
    monkeypatch.setattr(checkpoint, "GPT2_CONFIG", replace(checkpoint.GPT2_CONFIG, **small))
    reason = str(error).splitlines()[0]
    with pytest.warns(RandomWeightsWarning, match="RANDOM") as caught:
        loaded = load_model("gpt2")
    assert loaded.weights == "random" and reason in str(caught[0].message)
    with pytest.raises(FileNotFoundError, match="cannot be reached"):
        load_model("openai-community/gpt2")


@pytest.mark.parametrize("error, kind, reason", ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize("name", ["gpt2", "somebody/something"])
def test_other_failures_are_errors_with_their_reason(hub, name, error, kind, reason, recwarn):
    hub(error)
    with pytest.raises(kind, match=reason) as caught:
        load_model(name)
    assert getattr(error, "errno", None) == caught.value.errno
    assert not [w for w in recwarn if issubclass(w.category, RandomWeightsWarning)]


def test_a_copy_in_the_cache_is_used_where_the_connection_breaks(hub, tmp_path):
    folder = gpt2_checkpoint(tmp_path / "cached", seed=3)
    hub(httpx.ReadError("connection lost"), folder)
    assert load_model("gpt2").folder == folder


def test_without_an_answer_and_without_a_copy_the_first_reason_is_told(hub):
    hub(httpx.ConnectError("name resolution failed"), not_cached(None))
    with pytest.raises(FileNotFoundError, match="cannot be reached: .*name resolution failed"):
        load_model("somebody/something")


def test_a_copy_that_cannot_be_read_is_an_error(hub):
    hub(httpx.ConnectError("no route"), PermissionError(errno.EACCES, "denied"))
    with pytest.raises(PermissionError, match="denied"):
        load_model("gpt2")


def test_a_broken_file_in_the_cache_is_an_error(hub, tmp_path, recwarn):
    folder = gpt2_checkpoint(tmp_path / "cached", seed=3)
    (folder / "model.safetensors").write_bytes(b"half a file")
    hub(folder)
    with pytest.raises(ValueError, match="model.safetensors cannot be read"):
        load_model("gpt2")
    assert not [w for w in recwarn if issubclass(w.category, RandomWeightsWarning)]
