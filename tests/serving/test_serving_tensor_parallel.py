"""The server on two ranks: it answers as one process does, and ends with status 1 when a rank is killed."""

from __future__ import annotations

import os
import signal

import httpx
import psutil
import pytest

from lib.serving.server_process import ServerProcess
from tests.helpers import Tiny, llama_checkpoint


@pytest.mark.slow
def test_two_ranks_behind_one_server(tmp_path):
    tiny = Tiny(llama_checkpoint(tmp_path, seed=1, num_key_value_heads=3))
    arguments = ["--model", str(tmp_path), "--device", "cpu", "--num-blocks", "65"]
    with ServerProcess(*arguments, "--tensor-parallel-size", "2") as server:
        body = {"model": tmp_path.name, "prompt": [5, 6, 7], "max_tokens": 8, "temperature": 0}
        body |= {"ignore_eos": True, "return_token_ids": True}
        with httpx.Client(base_url=server.url, timeout=60) as client:
            answer = client.post("/v1/completions", json=body)
            assert answer.status_code == 200, answer.text
            assert answer.json()["choices"][0]["token_ids"] == tiny.greedy([5, 6, 7], 8)
            (rank_1,) = psutil.Process(server.pid).children()
            os.kill(rank_1.pid, signal.SIGKILL)
            failed = client.post("/v1/completions", json=body)
            assert failed.status_code == 500
        assert server.wait(20) == 1
