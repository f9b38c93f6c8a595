"""The bounds that the first run on a GPU is compared with."""

import pytest

from lib.bench.measure import counts
from lib.bench.measure.gpu_bounds import BATCHES, CONTEXT, GPUS, bounds, main
from lib.models.checkpoint import GPT2_CONFIG


def test_bounds_follow_from_bytes_and_flops():
    rows = {(r["gpu"], r["batch"]): r for r in bounds()}
    assert len(rows) == len(GPUS) * len(BATCHES)
    one = rows["H100", 1]
    assert one["limit"] == "bytes"
    read = counts.streamed_bytes(GPT2_CONFIG, "bfloat16") + CONTEXT * 36_864
    assert one["seconds"] == pytest.approx(read / 3.35e12)
    (many,) = (r for r in bounds(context=1) if (r["gpu"], r["batch"]) == ("T4", 512))
    flops = 512 * counts.decode_flops(GPT2_CONFIG, 1)
    assert many["limit"] == "FLOPs" and many["seconds"] == pytest.approx(flops / 65e12)
    for row in rows.values():
        assert row["tokens_per_second"] * row["seconds"] == pytest.approx(row["batch"])
    assert rows["H100", 1]["seconds"] < rows["A100", 1]["seconds"] < rows["T4", 1]["seconds"]


def test_the_table_names_every_gpu(capsys):
    main()
    out = capsys.readouterr().out
    assert all(gpu in out for gpu in GPUS) and "at least" in out
