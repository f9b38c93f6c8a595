"""One library for structured output over the JSON Schema test suite: what it compiles, and what it then accepts.

A program of its own, which `compare_grammars` starts once per library: a crash ends one trial alone.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

END = 256  # the id that ends a text; ids 0 to 255 are the single bytes


def llguidance_compiler(strict: bool) -> Callable[[Any], Callable[[str], bool]]:
    """A function that compiles a schema, into a function that says whether a text is accepted.

    Raises ValueError for strict, which only xgrammar has.
    """
    if strict:
        raise ValueError("strict must be False for llguidance")
    import llguidance

    class Bytes:
        eos_token_id, bos_token_id = END, None
        tokens = [*(bytes([i]) for i in range(256)), b"<end>"]
        special_token_ids = [END]

        def __call__(self, text: bytes | str) -> list[int]:
            return list(text.encode() if isinstance(text, str) else text)

    tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(Bytes()))

    def compile_(schema: Any) -> Callable[[str], bool]:
        grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema))
        matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise ValueError(matcher.get_error())

        def accepts(text: str) -> bool:
            tokens, one = list(text.encode()), matcher.deep_copy()
            if one.validate_tokens(tokens) < len(tokens):
                return False
            one.consume_tokens(tokens)
            return one.is_accepting()

        return accepts

    return compile_


def xgrammar_compiler(strict: bool) -> Callable[[Any], Callable[[str], bool]]:
    """The same for xgrammar. strict: its default, which forbids properties that the schema does not name."""
    import xgrammar

    info = xgrammar.TokenizerInfo(
        [*(bytes([i]) for i in range(256)), b"<end>"],
        vocab_type=xgrammar.VocabType.RAW,
        stop_token_ids=[END],
    )
    compiler = xgrammar.GrammarCompiler(info, max_threads=1)

    def compile_(schema: Any) -> Callable[[str], bool]:
        compiled = compiler.compile_json_schema(json.dumps(schema), strict_mode=strict)

        def accepts(text: str) -> bool:
            matcher = xgrammar.GrammarMatcher(compiled)
            return matcher.accept_string(text) and matcher.accept_token(END)

        return accepts

    return compile_


COMPILERS = {"llguidance": llguidance_compiler, "xgrammar": xgrammar_compiler}


def trial(folder: Path, compile_: Callable[[Any], Callable[[str], bool]]) -> dict[str, Any]:
    """Counts over all schemas of a folder of the suite, and the seconds that compiling took."""
    counts = dict.fromkeys(
        ("schemas", "compiled", "valid", "valid_accepted", "invalid", "invalid_accepted"), 0
    )
    seconds, wrong = 0.0, []
    for path in sorted(folder.glob("*.json")):
        for case in json.loads(path.read_text()):
            counts["schemas"] += 1
            start = time.perf_counter()
            try:
                accepts = compile_(case["schema"])
            except Exception:  # each library has error types of its own
                continue
            finally:
                seconds += time.perf_counter() - start
            counts["compiled"] += 1
            for test in case["tests"]:
                kind = "valid" if test["valid"] else "invalid"
                accepted = accepts(json.dumps(test["data"], ensure_ascii=False))
                counts[kind] += 1
                counts[f"{kind}_accepted"] += accepted
                if accepted and kind == "invalid" and path.stem not in wrong:
                    wrong.append(path.stem)
    return {**counts, "compile_seconds": round(seconds, 3), "invalid_accepted_in": wrong}


if __name__ == "__main__":
    name, mode, suite = sys.argv[1:]
    print(json.dumps(trial(Path(suite), COMPILERS[name](mode == "strict"))))
