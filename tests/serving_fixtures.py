"""The serving tests' fixtures; a module takes them with `pytest_plugins = ["tests.serving_fixtures"]`."""

from __future__ import annotations

from pathlib import Path

import httpx
import openai
import pytest

from tests.serving_support import start, write_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture(scope="session")
def server(checkpoint):
    """A server that nobody may break or leave busy."""
    with start(
        checkpoint,
        "--max-concurrent-requests",
        "256",
        "--max-num-seqs",
        "256",
        "--num-blocks",
        "32769",
    ) as process:
        yield process


@pytest.fixture
def client(server):
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


@pytest.fixture
def ai(server):
    with openai.OpenAI(
        base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=30
    ) as client:
        yield client
