"""langchain-openai against a server: `python langchain_client.py URL MODEL`."""

import sys
from typing import Literal

from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel

url, model = sys.argv[1:3]
to = {"base_url": url + "/v1", "api_key": "none", "model": model, "max_retries": 0, "timeout": 120}


class Paint(BaseModel):
    """A colour to paint with."""

    colour: Literal["red", "green"]


chat = ChatOpenAI(max_completion_tokens=200, **to)
answer = chat.invoke("Name a colour.")
assert answer.content and answer.usage_metadata["output_tokens"] > 0
assert chat.invoke([HumanMessage("Name a colour."), answer, HumanMessage("Why?")]).content
assert "".join(part.content for part in chat.stream("Name a colour."))
for method in ("json_schema", "function_calling"):
    found = chat.with_structured_output(Paint, method=method).invoke("Name a colour.")
    assert isinstance(found, Paint), (method, found)
forced = chat.bind_tools([Paint], tool_choice="required").invoke("Name a colour.")
(call,) = forced.tool_calls[:1]
assert call["name"] == "Paint"
history = [
    HumanMessage("Name a colour."),
    AIMessage("", tool_calls=[call]),
    ToolMessage("done", tool_call_id=call["id"]),
    HumanMessage("Thanks."),
]
assert chat.invoke(history) is not None
assert OpenAI(max_tokens=4, **to).invoke("The sky is")
print("chat, stream, structured output by schema and by tool, tools, completions")
