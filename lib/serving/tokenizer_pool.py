"""Text to tokens off the event loop, and single tokens to text for log-probabilities. Introduced in chapter 5."""

from __future__ import annotations

import asyncio
import copy
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from jinja2 import TemplateError

from lib.engine.llm import LLM
from lib.engine.prompts import as_token_ids, chat_token_ids
from lib.serving.errors import ApiError, invalid_request

_WORKERS = 2


class TokenizerPool:
    """Threads with a copy of the tokenizer each: one object must not serve several threads at a time.

    `limit`: tokens that the engine's longest sequence has. `has_text` is false for a model without a tokenizer.
    """

    def __init__(self, llm: LLM) -> None:
        self._tokenizer, self._vocab_size = copy.deepcopy(llm.tokenizer), llm.config.vocab_size
        self.limit = min(llm.max_model_len, llm.manager.max_sequence_tokens)
        self.has_text = llm.tokenizer is not None
        self.chat_template = str(getattr(llm.tokenizer, "chat_template", None) or "")
        self._local, self._lock = threading.local(), threading.Lock()
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="tokenizer")
        self._bytes: dict[int, bytes] = {}
        self._byte_of = (
            _byte_alphabet() if self.has_text and _is_byte_level(self._tokenizer) else None
        )

    async def encode(
        self, prompts: Sequence[str | list[int]], add_special_tokens: bool = True
    ) -> list[list[int]]:
        """Token ids of each prompt, checked. Raises ApiError 400.

        add_special_tokens: those that the tokenizer puts around a text, where it does.
        """
        return await self._run(
            "prompt",
            lambda tokenizer: [
                as_token_ids(prompt, tokenizer, self._vocab_size, add_special_tokens)
                for prompt in prompts
            ],
        )

    async def encode_chat(self, messages: Sequence[dict[str, Any]], **how: Any) -> list[int]:
        """A conversation through the chat template; how: as `encode_chat` of the engine. Raises ApiError 400."""

        def work(tokenizer: Any) -> list[int]:
            try:
                return chat_token_ids(tokenizer, messages, **how)
            except (TypeError, KeyError, AttributeError, IndexError) as error:
                # Templates are programs: these are their ways not to take a message.
                raise TemplateError(f"{type(error).__name__}: {error}") from None

        return await self._run("messages", work)

    async def decode(
        self, prompts: Sequence[list[int]], skip_special_tokens: bool = True
    ) -> list[str]:
        return await self._run(
            "prompt",
            lambda tokenizer: [
                tokenizer.decode(ids, skip_special_tokens=skip_special_tokens) for ids in prompts
            ],
        )

    def token_bytes(self, token_id: int) -> bytes:
        """What a token stands for: not always whole characters. For the loop, which keeps what it has seen."""
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._to_bytes(token_id)
        return known

    def token_text(self, token_id: int) -> str:
        """As OpenAI writes it: the text, or `bytes:\\xe2\\x80` for a part of a character."""
        data = self.token_bytes(token_id)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _run(self, param: str, function: Callable[[Any], Any]) -> Any:
        def work() -> Any:
            if not hasattr(self._local, "tokenizer"):
                with self._lock:
                    self._local.tokenizer = copy.deepcopy(self._tokenizer)
            return function(self._local.tokenizer)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        except ValueError as error:
            refusal = invalid_request(error)
            refusal.param = refusal.param or param
            raise refusal from None
        except RecursionError:
            raise ApiError(400, f"{param} must not nest as deeply", param) from None
        except TemplateError as error:
            raise ApiError(
                400, f"messages do not fit the model's chat template: {error}"[:500], param
            ) from None

    def _to_bytes(self, token_id: int) -> bytes:
        if not self.has_text:
            return f"token_id:{token_id}".encode()
        token = self._tokenizer.convert_ids_to_tokens(token_id) or ""
        if self._byte_of is not None and all(c in self._byte_of for c in token):
            return bytes(self._byte_of[c] for c in token)
        if len(token) == 6 and token.startswith("<0x"):  # sentencepiece's fallback for single bytes
            return bytes([int(token[3:5], 16)])
        return token.replace("\u2581", " ").encode()


def _is_byte_level(tokenizer: Any) -> bool:
    return "ByteLevel" in repr(
        getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", "")
    )


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte (Radford et al. 2019): itself where printable, else from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
