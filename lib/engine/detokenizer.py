"""Text from token ids as they come: whole characters only, and never a part of a stop string.

Introduced in chapter 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

# A UTF-8 character has at most four bytes, so at most four byte-level tokens. A longer run that still decodes to the
# replacement character is not an unfinished character but invalid bytes, and waiting for it would take for ever.
_MAX_HELD_TOKENS = 8
_REPLACEMENT = "\ufffd"
_WORD_START = "\u2581"  # how SentencePiece writes the space before a word
_MAX_CONTEXT = 8  # tokens of the prompt among which one with text is looked for


class TextState(
    NamedTuple
):  # several are made for each token, and a frozen dataclass is slow to make
    """How far a detokenizer is. `Detokenizer.after` makes the next one, `Detokenizer.commit` takes it."""

    num_tokens: int = 0  # read so far
    num_pieces: int = 0  # pieces of text before `new`
    new: str = ""  # the text that the last tokens have added
    context: tuple[int, ...] = ()  # the last tokens with text: decoded again beside what follows
    pending: tuple[int, ...] = ()  # tokens that may end in the middle of a character
    held: str = ""  # text that could be the beginning of a stop string
    stopped: bool = False  # at a stop string; nothing is added any more
    finished: bool = False  # nothing is held back any more


class Detokenizer:
    """Turns one completion's ids into pieces of text. The pieces together are the text.

    A token's text depends on its neighbours (spaces, bytes of one character), so each piece is the
    difference of two decodings of a short window, as in vLLM and Text Generation Inference.
    `stop`: strings that end the text; they count if their last character comes from a token after
    the first `min_tokens`. `prompt_token_ids`: what the output continues, for its first space.
    skip_special_tokens: special tokens have no text. include_stop: the stop string is part of the text.
    """

    def __init__(
        self,
        tokenizer: Any,
        stop: Sequence[str] = (),
        min_tokens: int = 0,
        prompt_token_ids: Sequence[int] = (),
        skip_special_tokens: bool = True,
        include_stop: bool = False,
    ) -> None:
        self._tokenizer, self._stop, self._min_tokens = tokenizer, tuple(stop), min_tokens
        self._prompt = tuple(prompt_token_ids[-_MAX_CONTEXT:])
        self._skip_special_tokens, self._include_stop = skip_special_tokens, include_stop
        self.state = TextState()
        self.pieces: list[str] = []  # grows only at its end
        self.piece_ends: list[int] = []  # tokens read when each piece was added

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def stopped(self) -> bool:
        return self.state.stopped

    def feed(self, token_ids: Sequence[int], last: bool = False) -> str:
        """Add ids; returns the new text. `last`: nothing follows, so nothing is held back."""
        self.commit(self.after(token_ids, last))
        return self.state.new

    def commit(self, state: TextState) -> None:
        """Take a state that `after` has made. Doing it twice changes nothing."""
        self.pieces[state.num_pieces :] = [state.new] if state.new else []
        self.piece_ends[state.num_pieces :] = [state.num_tokens] if state.new else []
        self.state = state

    def after(
        self, token_ids: Sequence[int], last: bool = False, state: TextState | None = None
    ) -> TextState:
        """The state after these tokens. Changes nothing: a step calls it before it commits to a token.

        `state`: go on from this result of `after`, which was not committed, with its new text.
        """
        if state is None:
            state = self.state._replace(num_pieces=len(self.pieces), new="")
        for token_id in token_ids:
            state = state._replace(num_tokens=state.num_tokens + 1)
            if not state.stopped:
                state = self._read(state, token_id)
        if last and not state.stopped:
            known = self._decode(state.context)
            rest = self._decode(state.context + state.pending)[len(known) :]
            state = self._emit(state._replace(pending=()), rest)
            if not state.stopped:
                state = state._replace(new=state.new + state.held, held="")
        return state._replace(finished=last or state.stopped)

    def _read(self, state: TextState, token_id: int) -> TextState:
        context = state.context or self._before_first(token_id)
        pending = (*state.pending, token_id)
        known, text = self._decode(context), self._decode(context + pending)
        if text.endswith(_REPLACEMENT) and len(pending) < _MAX_HELD_TOKENS:
            return state._replace(pending=pending)
        if text == known:  # a special token: as context it would hide the space of what follows
            return state._replace(pending=())
        return self._emit(state._replace(context=pending, pending=()), text[len(known) :])

    def _before_first(self, token_id: int) -> tuple[int, ...]:
        """The end of the prompt, if the output's first token begins a word: decoded alone it would lose its space."""
        piece = self._tokenizer.convert_ids_to_tokens(token_id) if self._prompt else None
        if piece and piece.startswith(_WORD_START):
            for start in range(len(self._prompt) - 1, -1, -1):
                if text := self._decode(self._prompt[start:]):
                    return () if text.endswith(_REPLACEMENT) else self._prompt[start:]
        return ()

    def _decode(self, token_ids: tuple[int, ...]) -> str:
        if not token_ids:
            return ""
        return self._tokenizer.decode(
            list(token_ids), skip_special_tokens=self._skip_special_tokens
        )

    def _emit(self, state: TextState, text: str) -> TextState:
        """`text` is new: add it, but for what a stop string cuts off or may begin with."""
        if not self._stop:
            return state._replace(new=state.new + text)
        unsure = state.held + text
        if state.num_tokens > self._min_tokens:
            # Only what ends in the new text: what ends before has been looked at, or comes too early.
            starts = [max(0, len(state.held) - len(s) + 1) for s in self._stop]
            found = [
                (at, at + len(s) if self._include_stop else at)
                for s, a in zip(self._stop, starts)
                if (at := unsure.find(s, a)) >= 0
            ]
            if found:
                _, end = min(found)  # the one that begins first
                return state._replace(new=state.new + unsure[:end], held="", stopped=True)
        keep = max(
            (n for s in self._stop for n in range(1, len(s)) if unsure.endswith(s[:n])), default=0
        )
        sure = len(unsure) - keep
        return state._replace(new=state.new + unsure[:sure], held=unsure[sure:])
