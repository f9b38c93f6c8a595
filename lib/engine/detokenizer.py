"""Text from token ids as they come: whole characters only, and never a part of a stop string.

Introduced in chapter 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# A UTF-8 character has at most four bytes, so at most four byte-level tokens. A longer run that still decodes to the
# replacement character is not an unfinished character but invalid bytes, and waiting for it would take for ever.
_MAX_HELD_TOKENS = 8
_REPLACEMENT = "\ufffd"


class Detokenizer:
    """Turns one completion's ids into text increments.

    The sum of the increments is the text. A token's text depends on its neighbours (spaces, bytes of one character),
    so each increment is the difference of two decodings of a short window, as in vLLM and Text Generation Inference.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._ids: list[int] = []
        self._window, self._read = 0, 0  # ids[window:read] are context, already in the text
        self._held = ""  # text that could be the beginning of a stop string
        self.text = ""
        self.stopped = False

    def feed(self, token_ids: Sequence[int], check_stop: bool = True) -> str:
        """Add ids; return the new text. After a stop string `stopped` is true and nothing more comes."""
        before = len(self.text)
        for token_id in token_ids:
            if self.stopped:
                break
            self._ids.append(token_id)
            old = self._decode(self._window, self._read)
            new = self._decode(self._window, len(self._ids))
            if new.endswith(_REPLACEMENT) and len(self._ids) - self._read < _MAX_HELD_TOKENS:
                continue
            self._window, self._read = self._read, len(self._ids)
            self._emit(new[len(old) :], check_stop)
        return self.text[before:]

    def finish(self) -> str:
        """Release what was held back; returns that text."""
        before = len(self.text)
        if not self.stopped:
            old = self._decode(self._window, self._read)
            rest = self._decode(self._window, len(self._ids))[len(old) :]
            self._window = self._read = len(self._ids)
            self._emit(rest, check_stop=True)
            if not self.stopped:
                self.text, self._held = self.text + self._held, ""
        return self.text[before:]

    def _decode(self, start: int, end: int) -> str:
        return (
            self._tokenizer.decode(self._ids[start:end], skip_special_tokens=True)
            if end > start
            else ""
        )

    def _emit(self, new: str, check_stop: bool) -> None:
        if not self._stop or not check_stop:
            self.text, self._held = self.text + self._held + new, ""
            return
        pending = self._held + new
        found = [at for at in (pending.find(s) for s in self._stop) if at >= 0]
        if found:
            self.text, self._held, self.stopped = self.text + pending[: min(found)], "", True
            return
        keep = max(
            (n for s in self._stop for n in range(1, len(s)) if pending.endswith(s[:n])), default=0
        )
        self.text += pending[: len(pending) - keep]
        self._held = pending[len(pending) - keep :]
