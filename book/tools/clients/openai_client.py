"""The openai package against a server: `python openai_client.py URL MODEL`. Raises where something is not as it should be."""

import sys
from typing import Literal

import openai
from pydantic import BaseModel

url, model = sys.argv[1:3]
ai = openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0, timeout=120)
question = [{"role": "user", "content": "Name a colour."}]


class Paint(BaseModel):
    colour: Literal["red", "green", "blue"]
    sure: bool


# Completions: echo with log-probabilities, and a prompt of token ids.
text = ai.completions.create(model=model, prompt="The sky is", max_tokens=5, echo=True, logprobs=1)
assert text.choices[0].text.startswith("The sky is")
assert text.choices[0].logprobs.token_logprobs[0] is None
ids = ai.completions.create(model=model, prompt=[504, 6376, 314], max_tokens=1)
assert ids.usage.prompt_tokens == 3

# Chat: the answer goes back as it came.
answer = ai.chat.completions.create(model=model, messages=question, max_tokens=8, store=True)
history = [*question, answer.choices[0].message.model_dump(), {"role": "user", "content": "Why?"}]
assert ai.chat.completions.create(model=model, messages=history, max_tokens=4).choices

stream = ai.chat.completions.create(
    model=model,
    messages=question,
    max_tokens=8,
    stream=True,
    stream_options={"include_usage": True},
)
assert list(stream)[-1].usage.completion_tokens > 0

# Structured output by a pydantic model.
parsed = ai.chat.completions.parse(model=model, messages=question, response_format=Paint)
assert isinstance(parsed.choices[0].message.parsed, Paint)

# A tool that must be called.
tool = openai.pydantic_function_tool(Paint)
for choice in ("required", {"type": "function", "function": {"name": "Paint"}}):
    called = ai.chat.completions.parse(
        model=model, messages=question, tools=[tool], tool_choice=choice, max_tokens=300
    )
    assert isinstance(called.choices[0].message.tool_calls[0].function.parsed_arguments, Paint)

try:
    ai.chat.completions.create(model=model, messages=question, max_tokens=0)
except openai.BadRequestError as error:
    assert error.param == "max_tokens"
else:
    raise AssertionError("max_tokens 0 was accepted")
print("completions, chat, streams, parse(), tools, errors")
