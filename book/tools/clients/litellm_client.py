"""litellm against a server: `python litellm_client.py URL MODEL`."""

import sys

import litellm

url, model = sys.argv[1:3]
to = {"api_base": url + "/v1", "api_key": "none", "num_retries": 0, "timeout": 120}
question = [{"role": "user", "content": "Name a colour."}]
schema = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green"]}},
    "required": ["colour"],
    "additionalProperties": False,
}

answer = litellm.completion(model=f"openai/{model}", messages=question, max_tokens=8, **to)
assert answer.choices[0].message.content
said = answer.choices[0].message.model_dump()
history = [*question, said, {"role": "user", "content": "Why?"}]
assert litellm.completion(model=f"openai/{model}", messages=history, max_tokens=4, **to).choices
parts = list(
    litellm.completion(
        model=f"openai/{model}", messages=question, max_tokens=8, stream=True, user="me", **to
    )
)
assert "".join(part.choices[0].delta.content or "" for part in parts)
formatted = litellm.completion(
    model=f"openai/{model}",
    messages=question,
    response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
    **to,
)
assert formatted.choices[0].message.content in ('{"colour": "red"}', '{"colour": "green"}')
function = {"type": "function", "function": {"name": "paint", "parameters": schema}}
called = litellm.completion(
    model=f"openai/{model}",
    messages=question,
    tools=[function],
    tool_choice="required",
    max_tokens=200,
    **to,
)
assert called.choices[0].message.tool_calls[0].function.name == "paint"
text = litellm.text_completion(
    model=f"text-completion-openai/{model}", prompt="The sky is", max_tokens=4, **to
)
assert text.choices[0].text
print("chat, stream, response_format, tools, completions")
