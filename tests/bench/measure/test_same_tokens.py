"""Equal tokens pass, unequal ones fail on a CPU and are shown on a GPU."""

import pytest

from lib.bench.measure.same_tokens import same_tokens


def test_equal_tokens_are_equal_everywhere(capsys):
    for device in ("cpu", "cuda"):
        assert same_tokens([[1, 2], (3,)], [(1, 2), [3]], device)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "got, said",
    [
        ([[1, 2], [3, 9, 5]], "1 of 2 answers differ, the first of them (answer 1) from token 1 on: 9 instead of 4"),
        ([[1], [3, 4]], "2 of 2 answers differ, the first of them (answer 0) from token 1 on: the end instead of 2"),
    ],
)  # fmt: skip
def test_a_difference_fails_on_a_cpu_and_is_shown_on_a_gpu(got, said, capsys):
    expected = [[1, 2], [3, 4, 5]]
    with pytest.raises(AssertionError) as raised:
        same_tokens(expected, got, "cpu", "paged")
    assert str(raised.value) == f"paged: {said}"
    assert not same_tokens(expected, got, "cuda")
    assert said in capsys.readouterr().out


def test_another_number_of_answers_is_no_rounding():
    with pytest.raises(ValueError, match="got 1 answers to compare with 2"):
        same_tokens([[1], [2]], [[1]], "cuda")
