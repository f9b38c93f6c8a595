"""What the serving tests share: a tiny checkpoint with a tokenizer, and one running server for most of them."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

import httpx
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from lib.models.checkpoint import build_model
from lib.models.config import load_config
from lib.serving.server_process import ServerProcess
from lib.serving.tokenizer_pool import _byte_alphabet

CONTEXT = 2048
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_checkpoint(folder: Path, hidden: int = 64, layers: int = 2, seed: int = 0) -> Path:
    """A random Llama with one token a byte, three special ones, and a chat template."""
    folder.mkdir(parents=True, exist_ok=True)
    vocab = {char: byte for char, byte in _byte_alphabet().items()}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "eos_token": "<|im_end|>",
                "chat_template": TEMPLATE,
            }
        )
    )
    (folder / "config.json").write_text(
        json.dumps(
            {
                "model_type": "llama",
                "hidden_size": hidden,
                "intermediate_size": 2 * hidden,
                "num_hidden_layers": layers,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "vocab_size": 259,
                "max_position_embeddings": CONTEXT,
                "rms_norm_eps": 1e-5,
                "rope_theta": 10000.0,
                "tie_word_embeddings": True,
                "eos_token_id": 258,
            }
        )
    )
    generator = torch.Generator().manual_seed(seed)
    shapes = build_model(load_config(folder)).checkpoint_shapes()
    save_file(
        {
            "model." + name: torch.ones(shape)
            if len(shape) == 1
            else torch.randn(shape, generator=generator) * 0.15
            for name, shape in shapes.items()
        },
        folder / "model.safetensors",
    )
    return folder


def start(checkpoint: Path, *arguments: str, module: str = "lib.serving") -> ServerProcess:
    """Not started yet: use `with`. One thread, because the model is tiny and tests may run side by side."""
    return ServerProcess(
        "--model",
        str(checkpoint),
        "--device",
        "cpu",
        "--attention",
        "gather",
        *arguments,
        startup_timeout=300,
        command=[sys.executable, "-m", module],
        environment={"OMP_NUM_THREADS": "1"},
    )


def gauges(client: httpx.Client) -> dict[str, float]:
    """Every sample of /metrics without its labels: name -> value (finished reasons as name/reason)."""
    samples: dict[str, float] = {}
    for line in client.get("/metrics").text.splitlines():
        if match := re.match(r"vllm:(\w+)\{([^}]*)\} (\S+)", line):
            name, labels, value = match.groups()
            if "le=" in labels:
                continue
            reason = re.search(r'finished_reason="(\w+)"', labels)
            samples[name + (f"/{reason[1]}" if reason else "")] = float(value)
    return samples


def wait_until(condition, seconds: float = 5.0, what: str = "the condition"):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not come within {seconds} s"
        time.sleep(0.02)
    return value


def idle(client: httpx.Client) -> bool:
    now = gauges(client)
    return (
        now["num_requests_running"],
        now["num_requests_waiting"],
        now["kv_cache_usage_perc"],
    ) == (0, 0, 0)


def sse(response: httpx.Response) -> list[dict | str]:
    """Events of a stream, parsed; the last is "[DONE]"."""
    data = [
        line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")
    ]
    return [item if item == "[DONE]" else json.loads(item) for item in data]
