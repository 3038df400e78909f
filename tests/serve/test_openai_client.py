"""The official client of OpenAI's API, against this server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.serve.opened import Api

openai = pytest.importorskip("openai")

HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def client(api: Api) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=api.ready.url, api_key=api.ready.key, max_retries=0) as found:
        yield found


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["a", "b", "base"]
    assert client.models.retrieve("b").owned_by == "tunesmith"


def test_a_chat_whole_and_streamed(api: Api, client: openai.OpenAI) -> None:
    settings = {"model": "a", "messages": HI, "temperature": 0, "max_tokens": 12}
    whole = client.chat.completions.create(**settings, logprobs=True, top_logprobs=2)
    assert whole.choices[0].message.content == api.text("Hi")
    assert whole.choices[0].finish_reason in ("stop", "length")
    assert len(whole.choices[0].logprobs.content[0].top_logprobs) == 2
    parts = list(
        client.chat.completions.create(**settings, stream=True, stream_options={"include_usage": True})
    )
    assert "".join(p.choices[0].delta.content or "" for p in parts if p.choices) == api.text("Hi")
    assert parts[-1].usage == whole.usage


def test_a_reply_can_be_sent_back_as_the_client_gives_it(client: openai.OpenAI) -> None:
    settings = {"model": "a", "temperature": 0, "max_tokens": 8}
    first = client.chat.completions.create(messages=HI, **settings)
    again = [*HI, first.choices[0].message.model_dump(), *HI]
    reply = client.chat.completions.create(messages=again, **settings)
    assert reply.usage.prompt_tokens > first.usage.total_tokens


def test_extra_fields_by_our_names(api: Api, client: openai.OpenAI) -> None:
    extra = {"top_k": 3, "repetition_penalty": 1.3}
    found = client.chat.completions.create(
        model="a", messages=HI, max_tokens=12, seed=1, temperature=1.0, extra_body=extra
    )
    assert found.choices[0].message.content == api.text("Hi", seed=1, **{"temperature": 1.0, **extra})
    assert found.choices[0].message.content != api.text("Hi", seed=1, temperature=1.0)


def test_completions(client: openai.OpenAI) -> None:
    found = client.completions.create(model="base", prompt="Hi", max_tokens=6, logprobs=1, temperature=0)
    assert len(found.choices[0].logprobs.tokens) == len(found.choices[0].logprobs.token_logprobs) > 0
    pieces = client.completions.create(
        model="base", prompt="The library", max_tokens=6, stream=True, temperature=0
    )
    whole = client.completions.create(model="base", prompt="The library", max_tokens=6, temperature=0)
    assert "".join(piece.choices[0].text for piece in pieces) == whole.choices[0].text


def test_errors_are_the_client_s_own(api: Api, client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(
            model="a", messages=HI, tools=[{"type": "function", "function": {"name": "f"}}]
        )
    assert wrong.value.param == "tools"
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-4", messages=HI)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=api.ready.url, api_key="sk-wrong", max_retries=0).models.list()
