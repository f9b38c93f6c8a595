"""Data sheets and shapes for arithmetic beside the small models of this book: 7B models, an H100, and an A100.

Introduced in chapter 1.
"""

from lib.bench.measure.roofline import Roofline
from lib.models.config import ModelConfig

# The shape of Llama 2 7B (Touvron et al., 2023), which most 7B models resemble.
LLAMA_7B = ModelConfig(
    architecture="llama",
    vocab_size=32000,
    hidden_size=4096,
    num_layers=32,
    num_heads=32,
    num_kv_heads=32,
    head_dim=128,
    intermediate_size=11008,
    max_position_embeddings=4096,
    tie_word_embeddings=False,
)
# NVIDIA's data sheet of the H100 SXM: promised, not measured. Dense bfloat16, without sparsity.
H100 = Roofline("cuda", bandwidth=3.35e12, flops={"bfloat16": 989e12})

# The shape of Mistral 7B (Jiang et al., 2023), of which published runs are quoted.
MISTRAL_7B = ModelConfig(
    architecture="llama",
    vocab_size=32000,
    hidden_size=4096,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    intermediate_size=14336,
    max_position_embeddings=32768,
    tie_word_embeddings=False,
)
# NVIDIA's data sheet of the A100 80GB PCIe, the card of the published figures. "bfloat16" is float16's rate too.
A100 = Roofline("cuda", bandwidth=1.935e12, flops={"float32": 19.5e12, "bfloat16": 312e12})
