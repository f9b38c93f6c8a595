"""Where the repository is, found from this file or, for an installed copy, from the working directory.

Introduced in chapter 1.
"""

from pathlib import Path


def repository() -> Path:
    """The repository's root: the folder that holds `_config.yml` and `lib/`.

    An editable install resolves to the clone itself, so this works from `chapters/` as well as from the root.
    """
    here = Path(__file__).resolve().parents[2]
    for folder in (here, Path.cwd(), *Path.cwd().parents):
        if (folder / "_config.yml").is_file() and (folder / "lib").is_dir():
            return folder
    return here


def measurements_dir() -> Path:
    """`book/measurements/`: the recorded runs, one folder per hardware."""
    return repository() / "book" / "measurements"
