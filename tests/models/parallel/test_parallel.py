"""A model divided among ranks, without processes: parts reassemble the whole, and ranks as threads compute its logits."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib.attention.full import FullAttention
from lib.core.batch import Batch
from lib.models.checkpoint import load_model
from lib.models.config import ModelConfig
from lib.models.fused.choose import fuse_layers
from lib.models.fused.layers import FewRowsLinear
from lib.models.packed import PackedLinear, pack_linears
from lib.models.parallel.fused import fuse_products
from lib.models.parallel.load import load_part, tensors_of
from lib.models.parallel.quantized import take_quantized
from lib.models.parallel.shard import Part, Shard, shard_of, share, take
from lib.models.quantized.load import load_quantized
from lib.models.quantized.matrix import QuantizedMatrix
from lib.models.quantized.rounding import round_blocks4, round_blocks8, round_channels
from lib.models.smollm2 import smollm2_file
from lib.models.weight_bytes import weight_bytes
from tests.families import hf_family
from tests.helpers import gpt2_checkpoint, llama_checkpoint, prompt_of

CPU = torch.device("cpu")
LLAMA = dict(hidden_size=384, intermediate_size=192, num_attention_heads=12)
MODELS = {
    "gpt2": (gpt2_checkpoint, dict(n_embd=128, n_head=4)),
    "12 query, 3 K/V heads": (llama_checkpoint, dict(LLAMA, num_key_value_heads=3)),
    "12 query, 1 K/V head, tied": (
        llama_checkpoint,
        dict(LLAMA, num_key_value_heads=1, tie_word_embeddings=True),
    ),
    "biases": (
        llama_checkpoint,
        dict(LLAMA, num_key_value_heads=6, attention_bias=True, mlp_bias=True),
    ),
}


class Threads:
    """Ranks as threads of one process: rank r's communicator is `Threads(...).rank(r)`."""

    def __init__(self, size: int) -> None:
        self.size, self.shared = size, [None] * size
        self.barrier = threading.Barrier(size, timeout=60)

    def exchange(self, rank: int, x: torch.Tensor) -> list[torch.Tensor]:
        self.shared[rank] = x
        self.barrier.wait()
        everything = list(self.shared)
        self.barrier.wait()
        return everything

    def rank(self, rank: int) -> Rank:
        return Rank(self, rank)


class Rank:
    def __init__(self, threads: Threads, rank: int) -> None:
        self.threads, self.number, self.reductions = threads, rank, 0

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        self.reductions += 1
        return torch.stack(self.threads.exchange(self.number, x)).sum(0)

    def gather(self, x: torch.Tensor) -> list[torch.Tensor] | None:
        parts = self.threads.exchange(self.number, x)
        return parts if self.number == 0 else None


class Alone:
    """The communicator of a single rank."""

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def gather(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [x]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("parallel")
    made = {name: make(root / str(i), seed=i, **sizes)
            for i, (name, (make, sizes)) in enumerate(MODELS.items())}  # fmt: skip
    return made


def run_ranks(folder: Path | str, size: int, batch: Batch, quantization: str | None = None):
    """(logits of each rank, the ranks' models, their communicators)."""
    threads, results, errors = Threads(size), [None] * size, []

    @torch.inference_mode()
    def run(rank: int) -> None:
        try:
            communicator = threads.rank(rank)
            kind = (quantization, "float32", CPU, torch.float32)
            model = load_part(folder, *kind, rank, size, communicator).model
            results[rank] = model(batch, FullAttention()), model, communicator
        except BaseException as error:
            errors.append(error)
            threads.barrier.abort()

    workers = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if errors:
        raise next(e for e in errors if not isinstance(e, threading.BrokenBarrierError))
    return tuple(zip(*results))


def batch_of(*lengths: int) -> Batch:
    batch = Batch.of_prompts([prompt_of(n, n) for n in lengths])
    batch.logits_indices = torch.arange(sum(lengths))
    return batch


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal up to float32's rounding of sums in another order; logits are of size ~10."""
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("name", MODELS)
def test_ranks_together_compute_the_logits_of_the_whole_model(folders, name, size):
    batch = batch_of(5, 1, 9)
    with torch.inference_mode():
        expected = load_model(folders[name]).model(batch, FullAttention())
    logits, models, communicators = run_ranks(folders[name], size, batch)
    close(logits[0], expected)
    assert [c.reductions for c in communicators] == [1 + 2 * 2] * size  # embedding, two per block
    for rank in range(1, size):  # other ranks keep their own columns
        vocabulary = models[rank].token_embedding.vocabulary
        close(logits[rank], expected[:, vocabulary.start : vocabulary.stop])


@pytest.mark.parametrize("quantization", ["int8", "int4"])
@pytest.mark.parametrize("name", ["gpt2", "12 query, 3 K/V heads", "biases"])
def test_quantised_ranks_compute_the_logits_of_the_quantised_model(folders, name, quantization):
    batch = batch_of(7, 2)
    whole = load_quantized(folders[name], quantization, "float32", CPU, torch.float32).model
    with torch.inference_mode():
        expected = whole(batch, FullAttention())
    logits, _, _ = run_ranks(folders[name], 2, batch, quantization)
    close(logits[0], expected)


@pytest.mark.slow
@pytest.mark.skipif(smollm2_file() is None, reason="SmolLM2's wheel is not installed")
def test_blocks_of_a_gguf_file_are_divided():
    """SmolLM2: 9 query and 3 K/V heads, so that rank 0 has 6 and 2."""
    batch = batch_of(4)
    with torch.inference_mode():
        whole = load_quantized("smollm2", "gguf", "float32", CPU, torch.float32).model
        expected = whole(batch, FullAttention())
    logits, models, _ = run_ranks("smollm2", 2, batch, "gguf")
    torch.testing.assert_close(logits[0], expected, rtol=1e-3, atol=1e-3)
    parts, total = [weight_bytes(model) for model in models], weight_bytes(whole)
    norms = sum(p.nbytes for key, p in whole.named_parameters() if "norm" in key)
    assert sum(parts) == total + norms and max(parts) < 0.54 * total


@pytest.mark.parametrize("name", ["mistral", "qwen2", "qwen3", "smollm3", "gemma2", "gemma3_text"])
def test_families_that_differ_from_llama(tmp_path, name):
    hf_family(name, seed=3).save_pretrained(tmp_path)
    batch = batch_of(5, 20)
    with torch.inference_mode():
        expected = load_model(tmp_path).model(batch, FullAttention())
    close(run_ranks(tmp_path, 2, batch)[0][0], expected)


def test_norms_over_all_heads_are_refused(tmp_path):
    hf_family("olmo2", seed=3).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="tensor_parallel_size must be 1 .*olmo2.*, got 2"):
        run_ranks(tmp_path, 2, batch_of(3))


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("name", MODELS)
def test_parts_of_each_tensor_reassemble_it(folders, name, size):
    loaded = load_model(folders[name])
    whole = _tensors(loaded.model)
    shards = [shard_of(loaded.config, rank, size) for rank in range(size)]
    parts = [tensors_of(whole, shard, loaded.model) for shard in shards]
    for key, tensor in whole.items():
        module = key.rpartition(".")[0]
        transposed = tensor.dim() == 2 and loaded.model.is_transposed(module)
        rebuilt = torch.full_like(tensor.T if transposed else tensor, float("nan"))
        for shard, part in zip(shards, parts):
            value = part[key].T if transposed else part[key]
            _put(rebuilt, shard.part_of(module), value)
        assert torch.equal(rebuilt.T if transposed else rebuilt, tensor), key


def _tensors(model) -> dict[str, torch.Tensor]:
    """A tensor of each of the checkpoint's shapes; every element is another number."""
    shapes = model.checkpoint_shapes()
    return {name: torch.arange(float(torch.Size(s).numel())).view(s) for name, s in shapes.items()}


def _put(whole: torch.Tensor, part: Part, value: torch.Tensor) -> None:
    columns = part.columns if whole.dim() == 2 else None
    view = whole if columns is None else whole[:, columns.start : columns.stop]
    if part.rows is None:
        view.copy_(value)
        return
    start = 0
    for rows in part.rows:
        view[rows.start : rows.stop] = value[start : start + len(rows)]
        start += len(rows)
    assert start == len(value)


@pytest.mark.parametrize("size", [2, 3])
def test_weights_are_divided_and_only_norms_biases_and_positions_are_whole(folders, size):
    """Counted: the ranks' elements, without what each holds as a whole, are the model's."""
    for name, folder in folders.items():
        whole = load_model(folder)
        batch = batch_of(3)
        _, models, _ = run_ranks(folder, size, batch)
        held = [sum(p.numel() for p in model.parameters()) for model in models]
        copies = sum(
            p.numel() * (size - 1)
            for key, p in whole.model.named_parameters()
            if any(part in key for part in ("norm", "ln_", "position", "proj.bias", "down.bias", "fc_out.bias"))
        )  # fmt: skip
        config = whole.config
        shards = [shard_of(config, rank, size) for rank in range(size)]
        # K/V heads that several ranks hold: rows of k and v, with their biases.
        more = sum(len(s.kv_heads) for s in shards) - config.num_kv_heads
        row = config.hidden_size + config.attention_bias
        copies += more * 2 * config.head_dim * row * config.num_layers
        total = sum(p.numel() for p in whole.model.parameters())
        assert sum(held) == total + copies, name
        assert held[0] == max(held)


def _config(heads: int, kv_heads: int, **changes) -> ModelConfig:
    sizes = dict(vocab_size=61, hidden_size=48, num_layers=1, head_dim=8, intermediate_size=96)
    sizes |= dict(max_position_embeddings=64)
    return ModelConfig("llama", num_heads=heads, num_kv_heads=kv_heads, **{**sizes, **changes})


@given(
    kv_heads=st.integers(1, 9),
    group=st.integers(1, 8),
    intermediate=st.integers(8, 300),
    vocab=st.integers(8, 300),
    size=st.integers(1, 8),
)
def test_every_head_feature_and_token_has_its_ranks(kv_heads, group, intermediate, vocab, size):
    config = _config(kv_heads * group, kv_heads, intermediate_size=intermediate, vocab_size=vocab)
    if size > config.num_heads:
        with pytest.raises(ValueError, match="tensor_parallel_size must be <= .*num_heads"):
            shard_of(config, 0, size)
        return
    shards = [shard_of(config, rank, size) for rank in range(size)]
    for field, count in (("heads", config.num_heads), ("intermediate", intermediate), ("vocabulary", vocab)):  # fmt: skip
        parts = [list(getattr(s, field)) for s in shards]
        assert sum(parts, []) == list(range(count))
        assert all(parts) and len(parts[0]) == max(map(len, parts))
    for s in shards:
        assert s.local_config.num_heads % s.local_config.num_kv_heads == 0
        # A query head finds its own K/V head at its local place.
        local = len(s.heads) // len(s.kv_heads)
        for place, head in enumerate(s.heads):
            assert s.kv_heads[place // local] == head // group
    if kv_heads >= size:
        assert sum((list(s.kv_heads) for s in shards), []) == list(range(kv_heads))


@pytest.mark.parametrize("rows", [3, 12])
def test_fused_products_compute_the_same(folders, rows):
    """Each packed product of a rank's part has the kernel for few rows, and no other."""
    model = load_part(folders["biases"], None, "float32", CPU, torch.float32, 0, 1, Alone()).model
    batch = batch_of(rows)
    with torch.inference_mode():
        expected = model(batch, FullAttention())
        assert pack_linears(model, "fused") == 4 * 2 + 1
        fuse_layers(model, "fused")
        fuse_products(model)
        close(model(batch, FullAttention()), expected)
    kernels = [m for m in model.modules() if isinstance(m, FewRowsLinear)]
    assert len(kernels) == 4 * 2 + 1 and all(type(m.linear) is PackedLinear for m in kernels)


def test_shares_differ_by_one_at_most_and_the_first_is_largest():
    assert [share(3, 2, r) for r in range(2)] == [range(0, 2), range(2, 3)]
    assert [len(share(61, 4, r)) for r in range(4)] == [16, 15, 15, 15]


def test_partial_products_add_up_to_the_whole_product():
    """Row-parallel: the sum over ranks of x_r W_r^T is x W^T, for floats and for quantised weights."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(24, 192, generator=generator)
    x = torch.randn(5, 192, generator=generator)
    columns = [range(0, 96), range(96, 160), range(160, 192)]
    rounders = [round_channels, round_blocks4, round_blocks8]
    for whole in [weight, *(r(weight) for r in rounders)]:
        if isinstance(whole, QuantizedMatrix):
            pieces = [take_quantized(whole, Part(columns=c)).dequantize() for c in columns]
            values = whole.dequantize()
        else:
            pieces, values = [take(whole, Part(columns=c)) for c in columns], whole
        total = sum(x[:, c.start : c.stop] @ p.T for c, p in zip(columns, pieces))
        torch.testing.assert_close(total, x @ values.T, rtol=1e-5, atol=1e-4)


def test_the_last_part_of_padded_rows_keeps_their_padding():
    matrix = round_channels(torch.randn(8, 80, generator=torch.Generator().manual_seed(1)))
    parts = [take_quantized(matrix, Part(columns=c)) for c in (range(0, 32), range(32, 80))]
    assert [p.codes.shape[1] for p in parts] == [32, 64]
    rebuilt = torch.cat([p.dequantize() for p in parts], dim=1)
    assert torch.equal(rebuilt, matrix.dequantize())


@pytest.mark.parametrize(
    "rounded, start, unit", [(round_blocks4, 40, 32), (round_channels, 48, 32)]
)
def test_a_group_that_would_be_cut_is_refused(rounded, start, unit):
    matrix = rounded(torch.randn(4, 96))
    with pytest.raises(ValueError, match=f"cuts mlp.down at inputs {start} to 96.*multiples of {unit}"):  # fmt: skip
        take_quantized(matrix, Part(columns=range(start, 96)), "mlp.down")


def test_groups_longer_than_a_block_are_kept_whole():
    matrix = QuantizedMatrix(8, torch.ones(2, 256, dtype=torch.int8), torch.ones(2, 2))
    assert take_quantized(matrix, Part(columns=range(128, 256))).group_size == 128
    with pytest.raises(ValueError, match="multiples of 128"):
        take_quantized(matrix, Part(columns=range(64, 256)))


def test_the_mlp_is_divided_between_groups_of_quantised_weights():
    features = [len(shard_of(_config(4, 4, intermediate_size=1536), r, 2).intermediate) for r in range(2)]  # fmt: skip
    assert features == [768, 768]
    uneven = [len(shard_of(_config(4, 4, intermediate_size=96), r, 2).intermediate) for r in range(2)]  # fmt: skip
    assert uneven == [64, 32]


def test_a_model_with_too_few_heads_is_refused(folders):
    with pytest.raises(ValueError, match="tensor_parallel_size must be <= 4, the model's num_heads"):  # fmt: skip
        load_part(folders["gpt2"], None, "float32", CPU, torch.float32, 0, 5, Threads(1).rank(0))


def test_activations_need_quantised_weights(folders):
    with pytest.raises(ValueError, match="quantized_activations must be 'float32'"):
        load_part(folders["gpt2"], None, "int8", CPU, torch.float32, 0, 2, Threads(1).rank(0))


def test_part_of_names_every_divided_tensor(folders):
    """A tensor that no rule names would be whole on every rank without notice."""
    for folder in folders.values():
        loaded = load_model(folder)
        shard: Shard = shard_of(loaded.config, 0, 2)
        whole = {
            name.rpartition(".")[0]
            for name in loaded.model.checkpoint_shapes()
            if shard.part_of(name.rpartition(".")[0]) == Part()
        }
        assert all("norm" in name or "ln_" in name or name == "wpe" for name in whole), whole
