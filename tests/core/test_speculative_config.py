"""Options of speculative decoding: what is right, what is refused, and with which words."""

from __future__ import annotations

import pytest

from lib.core.engine_options import EngineOptions
from lib.core.speculative_config import SpeculativeConfig
from lib.serving.server_options import parse


def test_each_method_takes_its_own_options():
    ngram = SpeculativeConfig.from_dict({"method": "ngram"})
    assert (ngram.num_speculative_tokens, ngram.prompt_lookup_min, ngram.prompt_lookup_max) == (4, 2, 4)  # fmt: skip
    assert ngram.adaptive
    exits = SpeculativeConfig.from_dict({"method": "early_exit", "draft_layers": 3})
    assert exits.draft_layers == 3
    model = SpeculativeConfig.from_dict({"method": "draft_model", "model": "x", "adaptive": False})
    assert model.model == "x" and not model.adaptive


@pytest.mark.parametrize("given, shortest, longest", [
    (dict(prompt_lookup_max=1), 1, 1), (dict(prompt_lookup_max=9), 2, 9), (dict(prompt_lookup_min=7), 7, 7),
    (dict(prompt_lookup_min=1), 1, 4), (dict(prompt_lookup_min=3, prompt_lookup_max=3), 3, 3),
])  # fmt: skip
def test_one_bound_of_the_lookup_moves_the_other_only_where_they_would_cross(given, shortest, longest):  # fmt: skip
    config = SpeculativeConfig.from_dict({"method": "ngram", **given})
    assert (config.prompt_lookup_min, config.prompt_lookup_max) == (shortest, longest)


@pytest.mark.parametrize("options, words", [
    ({}, ["speculative_config.method", "'ngram'", "None"]),
    ({"method": "eagle"}, ["speculative_config.method", "'early_exit'", "'eagle'"]),
    ({"method": "ngram", "k": 4}, ["num_speculative_tokens", "'k'"]),
    ({"method": "ngram", "draft_layers": 3}, ["draft_layers", "'early_exit'", "'ngram'", "3"]),
    ({"method": "early_exit", "draft_layers": 3, "model": "x"}, ["model", "'draft_model'", "'x'"]),
    ({"method": "ngram", "num_speculative_tokens": 0}, ["num_speculative_tokens", ">= 1", "got 0"]),
    ({"method": "ngram", "num_speculative_tokens": True}, ["num_speculative_tokens", "got True"]),
    ({"method": "ngram", "num_speculative_tokens": 2.0}, ["num_speculative_tokens", "got 2.0"]),
    ({"method": "ngram", "prompt_lookup_min": 0}, ["prompt_lookup_min", ">= 1", "got 0"]),
    ({"method": "ngram", "prompt_lookup_max": "5"}, ["prompt_lookup_max", "got '5'"]),
    ({"method": "ngram", "prompt_lookup_min": 5, "prompt_lookup_max": 3}, ["prompt_lookup_min", "<= prompt_lookup_max 3", "got 5"]),
    ({"method": "early_exit"}, ["draft_layers", "'early_exit'"]),
    ({"method": "early_exit", "draft_layers": 0}, ["draft_layers", "got 0"]),
    ({"method": "draft_model"}, ["model", "'draft_model'"]),
    ({"method": "ngram", "adaptive": 1}, ["adaptive", "True or False", "got 1"]),
])  # fmt: skip
def test_an_error_names_the_option_the_value_and_what_is_allowed(options, words):
    with pytest.raises(ValueError) as error:
        SpeculativeConfig.from_dict(options)
    assert all(word in str(error.value) for word in words), error.value


def test_the_engine_takes_a_dict_and_the_command_line_takes_json(capsys):
    with pytest.raises(ValueError, match="speculative_config must be a dict or None, got 'ngram'"):
        EngineOptions(speculative_config="ngram")
    flags = ["--speculative-config", '{"method": "ngram", "num_speculative_tokens": 3}']
    assert parse(flags).llm["speculative_config"] == {"method": "ngram", "num_speculative_tokens": 3}  # fmt: skip
    assert parse([]).llm["speculative_config"] is None
    with pytest.raises(SystemExit):
        parse(["--speculative-config", "ngram"])
    assert "--speculative-config: invalid JSON object value: 'ngram'" in capsys.readouterr().err


def test_the_engine_refuses_a_config_that_is_wrong(llama):
    with pytest.raises(ValueError, match="speculative_config.method must be one of"):
        llama.engine(speculative_config={"method": "magic"})
