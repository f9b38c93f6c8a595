"""Runs llama.cpp in an interpreter that has llama-cpp-python: `PYTHON llama_worker.py FILE.gguf`, driven by `other_engines`.

Speaks as `openvino_worker` does. All prompts are sequences of one context: one `llama_decode` per chunk of the prompts, then one
per generated token for all sequences, which is what llama.cpp's own server does. Imports nothing of this project.
Introduced in chapter 11.
"""

import ctypes
import json
import os
import sys
import time

CHUNK = 512  # tokens per call for prompts: llama.cpp's own default for its physical batch
SEQUENCES = 64
TOKENS = 64 * 128  # of all sequences


def main(path: str) -> None:
    """Answers until standard input ends. path: a GGUF file."""
    import llama_cpp as llama
    import numpy as np

    silent = llama.llama_log_callback(lambda *_: None)
    llama.llama_log_set(silent, ctypes.c_void_p(0))
    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(path.encode(), llama.llama_model_default_params())
    params = llama.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = (
        TOKENS,
        CHUNK,
        CHUNK,
        SEQUENCES,
    )
    params.n_threads = params.n_threads_batch = len(os.sched_getaffinity(0))
    context = llama.llama_init_from_model(model, params)
    vocab_size = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    batch = llama.llama_batch_init(CHUNK, 0, 1)

    def decode(tokens: list[tuple[int, int, int, bool]]) -> list[int]:
        """tokens: (id, position, sequence, whether its logits are wanted), at most CHUNK. The wanted rows' argmax."""
        batch.n_tokens = len(tokens)
        for i, (token, position, sequence, wanted) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        if (status := llama.llama_decode(context, batch)) != 0:
            raise RuntimeError(f"llama_decode returned {status}")
        wanted = [i for i, token in enumerate(tokens) if token[3]]
        rows = (llama.llama_get_logits_ith(context, i) for i in wanted)
        return [int(np.ctypeslib.as_array(row, shape=(vocab_size,)).argmax()) for row in rows]

    say({"name": "llama.cpp", "version": f"llama-cpp-python {llama.__version__}"})
    for line in sys.stdin:
        work = json.loads(line)
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        start = time.perf_counter()
        flat = [
            (token, position, sequence, position == len(ids) - 1)
            for sequence, ids in enumerate(work["prompts"])
            for position, token in enumerate(ids)
        ]
        last = [t for i in range(0, len(flat), CHUNK) for t in decode(flat[i : i + CHUNK])]
        answers = [[token] for token in last]
        for step in range(work["new"] - 1):
            rows = [
                (answer[-1], len(ids) + step, sequence, True)
                for sequence, (ids, answer) in enumerate(zip(work["prompts"], answers))
            ]
            for answer, token in zip(answers, decode(rows)):
                answer.append(token)
        say({"seconds": time.perf_counter() - start, "tokens": answers})


def say(message: dict) -> None:
    """Writes one line that the parent can tell from the library's own messages."""
    print("@" + json.dumps(message), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
