"""Runs OpenVINO GenAI in an interpreter that has it: `PYTHON openvino_worker.py FILE.gguf`, driven by `other_engines`.

Reads one JSON object per line from standard input, {"prompts": [[id, ...], ...], "new": n}, generates n tokens greedily for all
prompts with continuous batching, and writes {"seconds": s, "tokens": [[id, ...], ...]}. The first line that it writes is
{"name": ..., "version": ...}. Imports nothing of this project. Introduced in chapter 11.
"""

import json
import sys
import time


def main(path: str) -> None:
    """Answers until standard input ends. path: a GGUF file."""
    import numpy as np
    import openvino
    import openvino_genai

    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = 2  # GB
    scheduler.max_num_seqs = 64
    scheduler.max_num_batched_tokens = 2048
    scheduler.enable_prefix_caching = False  # the same prompts come in every round
    engine = openvino_genai.ContinuousBatchingPipeline(path, scheduler, "CPU")
    say({"name": "OpenVINO GenAI", "version": openvino_genai.__version__})
    for line in sys.stdin:
        work = json.loads(line)
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = work["new"], True, False
        inputs = [openvino.Tensor(np.array([ids], dtype=np.int64)) for ids in work["prompts"]]
        start = time.perf_counter()
        results = engine.generate(inputs, [config] * len(inputs))
        seconds = time.perf_counter() - start
        tokens = [[int(i) for i in result.m_generation_ids[0]] for result in results]
        say({"seconds": seconds, "tokens": tokens})


def say(message: dict) -> None:
    """Writes one line that the parent can tell from the library's own messages."""
    print("@" + json.dumps(message), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
