"""One realistic setting, for arithmetic beside the small models of this book: a 7B model on a data-centre GPU.

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
