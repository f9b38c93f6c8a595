"""What a model's shape is: the few numbers of a Hugging Face config.json that the forward pass needs.

Introduced in chapter 1.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lib.models.config_keys import gpt2_fields, llama_fields
from lib.models.families import FAMILIES
from lib.models.rope_config import check_rope


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a decoder-only transformer.

    Sizes are counts (of tokens, features, layers or heads), `norm_eps` and `rope_theta` are pure numbers.
    `rope_scaling` is None or a dict as `lib.models.rope_config.read_rope` returns it. The fields
    from `output_bias` to `moe_layers` are differences of later families from Llama, see
    `lib.models.llama_variants`.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_position_embeddings: int
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    attention_bias: bool = False  # of q, k and v
    mlp_bias: bool = False
    output_bias: bool | None = None  # of the attention's output; None: as attention_bias
    qk_norm: str | None = None  # RMSNorm of q and k over each "head", or the whole "projection"
    post_norm: bool = False  # norms follow attention and MLP instead of preceding them
    sandwich_norm: bool = False  # norms precede attention and MLP, and others follow them
    norm_offset: bool = False  # norms multiply by 1 + weight
    activation: str = "silu"  # of the gated MLP: "silu" or "gelu_tanh"
    embedding_scale: float = 1.0  # what the embedding's rows are multiplied by
    attention_scale: float | None = None  # what scores are multiplied by; None: head_dim ** -0.5
    # A score s becomes cap * tanh(s / cap): of attention, and of the logits. None: no cap.
    attention_softcap: float | None = None
    final_softcap: float | None = None
    local_rope_theta: float | None = None  # of layers with a window; None: as the others
    rope_layers: tuple[bool, ...] = ()  # whether each layer rotates q and k; empty: all do
    # Tokens that each layer's queries see, their own included; None: all. Empty: all, in all layers.
    layer_windows: tuple[int | None, ...] = ()
    # A mixture of experts, see `lib.models.moe`. 0 experts: every layer has one MLP.
    num_experts: int = 0
    num_experts_per_tok: int = 0
    moe_intermediate_size: int = 0
    norm_topk_prob: bool = False  # the chosen experts' shares are divided by their sum
    shared_expert_size: int = 0  # features of an expert that every token passes; 0: none
    moe_layers: tuple[bool, ...] = ()  # whether each layer is a mixture; empty: all are
    tie_word_embeddings: bool = True
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = field(default=())

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "intermediate_size",
            "max_position_embeddings",
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads must be a multiple of num_kv_heads, got {self.num_heads} and {self.num_kv_heads}"
            )
        if self.architecture != "gpt2" and self.head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary embeddings, got {self.head_dim}")
        if self.output_bias is None:
            object.__setattr__(self, "output_bias", self.attention_bias)
        check_rope(self.rope_scaling)
        _positive("rope_theta", self.rope_theta)
        _positive("norm_eps", self.norm_eps)
        if self.local_rope_theta is not None:
            _positive("rope_local_base_freq", self.local_rope_theta)
        for token_id in self.eos_token_ids:
            if not isinstance(token_id, int) or isinstance(token_id, bool) or token_id < 0:
                raise ValueError(
                    f"eos_token_id must be an integer >= 0 or a list of them, got {token_id!r}"
                )

    @property
    def sliding_window(self) -> int | None:
        """Tokens before which no layer looks back: the widest window. None if a layer sees all."""
        windows = self.layer_windows
        return None if not windows or None in windows else max(windows)

    def is_moe(self, layer: int) -> bool:
        """Whether a layer's MLP is a mixture of experts."""
        return self.num_experts > 0 and (not self.moe_layers or self.moe_layers[layer])

    def kv_bytes_per_token(self, element_size: int) -> int:
        """Bytes of K and V that one token leaves behind over all layers, at `element_size` bytes an element."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * element_size


def _positive(name: str, value: object) -> None:
    if (
        not isinstance(value, (int, float))
        or isinstance(value, bool)
        or not 0 < value < float("inf")
    ):
        raise ValueError(f"{name} must be a number > 0, got {value!r}")


def load_config(folder: str | Path) -> ModelConfig:
    """Read `config.json` (and `generation_config.json`, if there) of a Hugging Face checkpoint folder.

    Raises FileNotFoundError without a config.json, ValueError for an unreadable one, an unknown architecture or a
    variant whose arithmetic is not implemented here.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"no config.json in {folder}: a checkpoint folder holds config.json and *.safetensors"
        )
    raw = _read_json(path)
    generation_path = path.with_name("generation_config.json")
    generation = _read_json(generation_path) if generation_path.is_file() else {}
    architecture = raw.get("model_type")
    if not isinstance(architecture, str) or architecture not in FAMILIES:
        raise ValueError(
            f"{path}: model_type must be one of {sorted(FAMILIES)}, got {architecture!r}"
        )
    try:
        FAMILIES[architecture].check(raw)
        fields = gpt2_fields(raw) if architecture == "gpt2" else llama_fields(raw)
        return ModelConfig(
            architecture=architecture,
            **fields,
            bos_token_id=raw.get("bos_token_id"),
            eos_token_ids=_eos_ids(generation, raw),
        )
    except KeyError as missing:
        raise ValueError(f"{path}: missing key {missing}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def quantization_config(folder: str | Path) -> dict[str, Any] | None:
    """What config.json says of quantised weights; None for a checkpoint of floats, or without the file."""
    path = Path(folder) / "config.json"
    value = _read_json(path).get("quantization_config") if path.is_file() else None
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"{path}: quantization_config must be an object, got {value!r}")
    return value


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(data).__name__}")
    return data


def _eos_ids(generation: dict[str, Any], raw: dict[str, Any]) -> tuple[int, ...]:
    """generation_config.json wins: chat models often end a turn with a token that config.json does not name."""
    value = generation.get("eos_token_id")
    if value is None:
        value = raw.get("eos_token_id")
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (value,)
