"""instructor against a server: `python instructor_client.py URL MODEL`."""

import sys
from typing import Literal

import instructor
import openai
from instructor.core.exceptions import InstructorError
from pydantic import BaseModel

url, model = sys.argv[1:3]


class City(BaseModel):
    name: Literal["Paris", "Rome"]
    large: bool


class Trip(BaseModel):
    first: City
    second: City


done = []
for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON, instructor.Mode.JSON_SCHEMA):
    ai = openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0, timeout=120)
    client = instructor.from_openai(ai, mode=mode)
    answers = []
    client.on("completion:response", answers.append)
    # JSON asks for any JSON object and hopes: a small model needs the schema to hold.
    if mode is instructor.Mode.JSON:
        try:
            client.chat.completions.create(
                model=model,
                response_model=City,
                max_retries=1,
                max_tokens=60,
                messages=[{"role": "user", "content": "Which city?"}],
            )
        except InstructorError as error:
            # What the model wrote did not fit. A refusal by the server would leave no answer.
            assert answers, error
    else:
        trip = client.chat.completions.create(
            model=model,
            response_model=Trip,
            max_retries=1,
            max_tokens=300,
            messages=[{"role": "user", "content": "Plan a trip to two cities."}],
        )
        assert isinstance(trip, Trip)
    done.append(mode.name)
print(", ".join(done))
