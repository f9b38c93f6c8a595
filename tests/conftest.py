"""What all tests share: no network, seeded hypothesis, one thread, tiny checkpoints written once a session."""

from __future__ import annotations

import json
import os

os.environ["HF_HUB_OFFLINE"] = (
    "1"  # before huggingface_hub is imported: a test that needs a hub is no test
)
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import pytest
import torch
from hypothesis import HealthCheck, settings
from tokenizers import Tokenizer, models, pre_tokenizers

from tests.helpers import VOCAB, Tiny, gpt2_checkpoint, llama_checkpoint

settings.register_profile(
    "book",
    derandomize=True,
    deadline=None,
    print_blob=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("book")
torch.set_num_threads(
    1
)  # the models are tiny: threads cost more than they bring, and tests may run side by side


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for marker in ("aot_sweep", "fake_device"):  # many minutes each
        if marker not in (config.option.markexpr or ""):
            sweep = [item for item in items if item.get_closest_marker(marker)]
            config.hook.pytest_deselected(items=sweep)
            items[:] = [item for item in items if not item.get_closest_marker(marker)]
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture(autouse=True)
def one_thread():
    """A test that changes PyTorch's number of threads changes it for itself only."""
    yield
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A random Llama: 3 query heads a K/V head, untied head, positions to 512."""
    return Tiny(llama_checkpoint(tmp_path_factory.mktemp("llama"), seed=1))


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A random GPT-2: 3 heads, tied head, positions to 512."""
    return Tiny(gpt2_checkpoint(tmp_path_factory.mktemp("gpt2"), seed=2))


@pytest.fixture(scope="session")
def tiny(llama: Tiny, gpt2: Tiny) -> dict[str, Tiny]:
    return {"llama": llama, "gpt2": gpt2}


@pytest.fixture(scope="session")
def texty(tmp_path_factory) -> Tiny:
    """A model that writes text: each of its 61 tokens is a letter or two."""
    folder = llama_checkpoint(tmp_path_factory.mktemp("texty"), seed=1)
    words = [
        "<unk>",
        "<s>",
        "</s>",
        *[chr(97 + i % 26) + (chr(97 + i // 26) if i >= 26 else "") for i in range(VOCAB - 3)],
    ]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"})
    )
    return Tiny(folder)
