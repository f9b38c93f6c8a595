"""Tokenizers and chat templates are transformers'; this finds the one that lies beside a checkpoint.

Introduced in chapter 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def load_tokenizer(folder: str | Path) -> Any | None:
    """The folder's tokenizer, or None if there is none: such a model works with token ids only.

    Raises ValueError if tokenizer files are there but cannot be read.
    """
    folder = Path(folder)
    if not any((folder / name).is_file() for name in _FILES):
        return None
    from transformers import AutoTokenizer, logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()  # a folder without "tokenizer_class" is fine, and not worth a warning a load
    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # transformers raises many kinds for a broken file
        raise ValueError(f"the tokenizer in {folder} cannot be read: {error}") from None
    finally:
        logging.set_verbosity(level)
