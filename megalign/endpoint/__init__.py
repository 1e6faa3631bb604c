"""Chat models behind an OpenAI-compatible HTTP endpoint: asked in parallel, at a bounded rate, with retries and checked answers.

    endpoint = Endpoint("http://127.0.0.1:8000/v1", "some-model", api_key_variable="MY_KEY")
    client = Client(endpoint, requests_per_minute=60)
    answers = client.ask_all([Question([{"role": "user", "content": "..."}], check=parse_answer)], Cache(path), on_failure=print)

`check` turns the model's text into the value wanted, or raises `BadAnswer`, which asks again. The API key is read from an environment
variable, sent in the Authorization header alone, and stands in no message, file or log.
"""

from megalign.endpoint.cache import Cache
from megalign.endpoint.client import BadAnswer, Client, Endpoint, Failure, Question
from megalign.endpoint.objects import json_object

__all__ = ["BadAnswer", "Cache", "Client", "Endpoint", "Failure", "Question", "json_object"]
