"""What an application does with LangChain (tests/support/calling.py runs it). It is told where the server is, and no more."""

from collections.abc import Callable
from typing import Any, Literal

import httpx
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel

QUESTION = [SystemMessage("Be brief."), HumanMessage("Name three rivers of Europe.")]


class River(BaseModel):
    name: Literal["Rhine", "Seine"]
    wide: bool


@tool
def look_up(name: Literal["Rhine", "Seine"]) -> str:
    """Looks up a river."""
    return f"The {name} is long."


def calls(url: str, model: str, embedder_url: str, embedder: str) -> dict[str, Callable[[], Any]]:
    """`url`, `embedder_url`: without /v1. Calls named `error: ` fail."""
    base = {"base_url": f"{url}/v1", "api_key": "none", "model": model, "temperature": 0, "max_retries": 0}
    llm = ChatOpenAI(**base, max_tokens=10, stream_usage=True)
    longer = ChatOpenAI(**base, max_tokens=60)
    responses = ChatOpenAI(**base, max_tokens=10, use_responses_api=True, output_version="responses/v1")
    words = OpenAI(**base, max_tokens=8)
    # What is sent are texts: tokens of another model's tokenizer, which would be fetched, mean nothing to this one.
    embeddings = OpenAIEmbeddings(
        base_url=f"{embedder_url}/v1", api_key="none", model=embedder, check_embedding_ctx_length=False, max_retries=0
    )

    def tokens(text: str) -> list[int]:
        asked = {"model": model, "prompt": text, "add_special_tokens": False}
        answer = httpx.post(f"{url}/tokenize", json=asked, timeout=60)
        return list(answer.raise_for_status().json()["tokens"])

    counting = ChatOpenAI(**base, custom_get_token_ids=tokens)

    async def astreamed() -> Any:
        whole = None
        async for chunk in llm.astream(QUESTION):
            whole = chunk if whole is None else whole + chunk
        return told(whole)

    async def abatched() -> list[Any]:
        return [told(message) for message in await llm.abatch([QUESTION, QUESTION[1:]])]

    async def ainvoked() -> Any:
        return told(await llm.ainvoke(QUESTION))

    def streamed(source: Any) -> Any:
        whole = None
        for chunk in source.stream(QUESTION):
            whole = chunk if whole is None else whole + chunk
        return told(whole)

    return {
        "ChatOpenAI.invoke": lambda: told(llm.invoke(QUESTION)),
        "ChatOpenAI.stream": lambda: streamed(llm),
        "ChatOpenAI.batch": lambda: [told(message) for message in llm.batch([QUESTION, QUESTION[1:]])],
        "ChatOpenAI.ainvoke": ainvoked,
        "ChatOpenAI.astream": astreamed,
        "ChatOpenAI.abatch": abatched,
        "ChatOpenAI of two choices": lambda: [
            [generation.text for generation in generations]
            for generations in ChatOpenAI(**{**base, "temperature": 0.8}, n=2, seed=7, max_tokens=8)
            .generate([QUESTION])
            .generations
        ],
        "ChatOpenAI with logprobs": lambda: llm.bind(logprobs=True).invoke(QUESTION).response_metadata["logprobs"],
        "ChatOpenAI with a stop": lambda: told(longer.invoke(QUESTION, stop=["."])),
        "with_structured_output": lambda: longer.with_structured_output(River).invoke(QUESTION).model_dump(),
        "bind_tools": lambda: called(longer.bind_tools([look_up], tool_choice="look_up", strict=True).invoke(QUESTION)),
        "bind_tools, streamed": lambda: called(
            sum_of(longer.bind_tools([look_up], tool_choice="look_up", strict=True).stream(QUESTION))
        ),
        "a tool's message": lambda: told(llm.invoke(with_tool())),
        "a chain": lambda: (
            ChatPromptTemplate.from_messages([("user", "Name three {things} of Europe.")]) | llm | StrOutputParser()
        ).invoke({"things": "lakes"}),
        "get_num_tokens": lambda: counting.get_num_tokens("Name three rivers of Europe."),
        "use_responses_api": lambda: told(responses.invoke(QUESTION)),
        "use_responses_api, streamed": lambda: streamed(responses),
        "OpenAI.invoke": lambda: words.invoke("The river flows"),
        "OpenAI.stream": lambda: "".join(words.stream("The river flows")),
        "OpenAIEmbeddings.embed_documents": lambda: embeddings.embed_documents(["The river", "A lake"]),
        "OpenAIEmbeddings.aembed_query": lambda: embeddings.aembed_query("The river"),
        "error: an unknown model": lambda: told(ChatOpenAI(**{**base, "model": "nope"}).invoke(QUESTION)),
        "error: a wrong field": lambda: told(ChatOpenAI(**base, top_p=7).invoke(QUESTION)),
        "error: a prompt that is too long": lambda: told(llm.invoke("word " * 3000)),
    }


def with_tool() -> list[Any]:
    call = {"name": "look_up", "args": {"name": "Rhine"}, "id": "call-1"}
    return [*QUESTION, AIMessage("", tool_calls=[call]), ToolMessage("It is 1233 km long.", tool_call_id="call-1")]


def sum_of(stream: Any) -> Any:
    whole = None
    for chunk in stream:
        whole = chunk if whole is None else whole + chunk
    return whole


def told(message: Any) -> dict[str, Any]:
    """What an application reads of an answer."""
    text = message.text if isinstance(message.text, str) else message.text()
    reason = message.response_metadata.get("finish_reason") or message.response_metadata.get("status")
    return {"text": text, "usage": message.usage_metadata, "reason": reason}


def called(message: Any) -> list[Any]:
    return [(call["name"], call["args"]) for call in message.tool_calls]
