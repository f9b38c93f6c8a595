"""The runs under JSON schemas in small: a model of random weights, and every schema of the large run."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from book.tools import schema_runs
from lib.engine.structured.token_bytes import byte_level_alphabet
from tests.helpers import Tiny, llama_checkpoint

pytest.importorskip("llguidance")


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("schemas")
    names = ["<unk>", "<s>", "</s>", *byte_level_alphabet()]
    backend = Tokenizer(models.BPE(vocab={n: i for i, n in enumerate(names)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    llama_checkpoint(folder, vocab_size=len(names))
    PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    return Tiny(folder).engine(num_blocks=800, max_num_seqs=16)


def test_every_text_that_ends_with_stop_is_valid(engine):
    rows = schema_runs.run(engine, schema_runs.SCHEMAS, range(3), max_tokens=48)
    assert [row["schema"] for row in rows] == list(schema_runs.SCHEMAS)
    assert all(row["answers"] == 3 for row in rows)
    assert [row["wrong"] for row in rows if row["wrong"]] == []
    assert sum(row["valid"] for row in rows) > len(rows), "most of these answers are short"


@pytest.mark.parametrize(
    "text, valid",
    [
        ('{"name": "ant", "age": 3}', True),
        ('{"name": "ant", "age": 300}', False),
        ('{"name": "ant"}', False),
        ('{"name": "ant", "age": 3', False),
        ("ant", False),
    ],
)
def test_the_judge(text, valid):
    assert schema_runs.is_valid(text, schema_runs.SCHEMAS["object"]) == valid


def test_the_judge_reads_formats():
    assert schema_runs.is_valid('"2024-02-29"', schema_runs.SCHEMAS["date"])
    assert not schema_runs.is_valid('"2023-02-29"', schema_runs.SCHEMAS["date"])


def test_a_text_that_is_not_valid_is_kept(engine, monkeypatch):
    monkeypatch.setattr(schema_runs, "is_valid", lambda text, schema: False)
    (row,) = schema_runs.run(engine, {"boolean": {"type": "boolean"}}, range(2), max_tokens=9)
    assert row["stopped"] == len(row["wrong"]) == 2 and row["valid"] == 0
