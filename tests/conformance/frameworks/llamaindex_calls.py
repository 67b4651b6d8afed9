"""What an application does with LlamaIndex (tests/support/calling.py runs it). It is told where the server is, and no more."""

from collections.abc import Callable
from typing import Any, Literal

from llama_index.core import Document, PromptTemplate, VectorStoreIndex
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike, OpenAILikeResponses
from pydantic import BaseModel

QUESTION = [ChatMessage(role="system", content="Be brief."), ChatMessage(content="Name three rivers of Europe.")]
PROMPT = "Name three rivers of Europe."
TEXTS = (
    "The Rhine flows into the North Sea.",
    "The Danube flows into the Black Sea.",
    "The Seine flows through Paris.",
)


class River(BaseModel):
    """A river."""

    name: Literal["Rhine", "Seine"]
    wide: bool


def look_up(name: Literal["Rhine", "Seine"]) -> str:
    """Looks up a river."""
    return f"The {name} is long."


def calls(url: str, model: str, embedder_url: str, embedder: str) -> dict[str, Callable[[], Any]]:
    """`url`, `embedder_url`: without /v1. Calls named `error: ` fail."""
    at: dict[str, Any] = {"api_base": f"{url}/v1", "api_key": "none", "model": model}
    base = {**at, "temperature": 0, "max_retries": 0, "context_window": 1024}
    able = {"is_chat_model": True, "is_function_calling_model": True, "should_use_structured_outputs": True}
    llm = OpenAILike(**base, **able, max_tokens=10)
    longer = OpenAILike(**base, **able, max_tokens=60)
    words = OpenAILike(**base, is_chat_model=False, max_tokens=8)
    responses = OpenAILikeResponses(**base, max_output_tokens=10)
    embedding = OpenAILikeEmbedding(
        model_name=embedder, api_base=f"{embedder_url}/v1", api_key="none", max_retries=0, embed_batch_size=2
    )

    async def achat() -> Any:
        return told(await llm.achat(QUESTION))

    async def acomplete() -> str:
        return (await llm.acomplete(PROMPT)).text

    async def astream_chat() -> str:
        return "".join([piece.delta or "" async for piece in await llm.astream_chat(QUESTION)])

    async def aembed() -> list[float]:
        return await embedding.aget_text_embedding(TEXTS[0])

    def asked_of_texts() -> Any:
        """Parts of a document, their vectors, the nearest of them, and an answer made from it."""
        documents = [Document(text=text, doc_id=str(n)) for n, text in enumerate(TEXTS)]
        index = VectorStoreIndex.from_documents(documents, embed_model=embedding)
        answer = index.as_query_engine(llm=llm, similarity_top_k=1).query("Which river flows through Paris?")
        return {"text": str(answer), "from": [source.node.get_content() for source in answer.source_nodes]}

    def tool_calls() -> Any:
        tool = FunctionTool.from_defaults(look_up)
        answer = longer.chat_with_tools([tool], user_msg=PROMPT, tool_required=True, strict=True)
        return [(call.tool_name, call.tool_kwargs) for call in longer.get_tool_calls_from_response(answer)]

    return {
        "OpenAILike.chat": lambda: told(llm.chat(QUESTION)),
        "OpenAILike.stream_chat": lambda: "".join(piece.delta or "" for piece in llm.stream_chat(QUESTION)),
        "OpenAILike.achat": achat,
        "OpenAILike.astream_chat": astream_chat,
        "OpenAILike.complete, as a chat": lambda: llm.complete(PROMPT).text,
        "OpenAILike.acomplete, as a chat": acomplete,
        "OpenAILike.complete": lambda: words.complete(PROMPT).text,
        "OpenAILike.stream_complete": lambda: "".join(piece.delta or "" for piece in words.stream_complete(PROMPT)),
        "OpenAILike.structured_predict": lambda: longer.structured_predict(River, PromptTemplate(PROMPT)).model_dump(),
        "OpenAILike.as_structured_llm": lambda: longer.as_structured_llm(River).complete(PROMPT).raw.model_dump(),
        "OpenAILike.chat_with_tools": tool_calls,
        "OpenAILikeResponses.chat": lambda: responses.chat(QUESTION).message.content,
        "OpenAILikeResponses.stream_chat": lambda: "".join(
            piece.delta or "" for piece in responses.stream_chat(QUESTION)
        ),
        "OpenAILikeEmbedding.get_text_embedding": lambda: embedding.get_text_embedding(TEXTS[0]),
        "OpenAILikeEmbedding.get_text_embedding_batch": lambda: embedding.get_text_embedding_batch(list(TEXTS)),
        "OpenAILikeEmbedding.aget_text_embedding": aembed,
        "VectorStoreIndex and its query engine": asked_of_texts,
        "error: an unknown model": lambda: told(OpenAILike(**{**base, **able, "model": "nope"}).chat(QUESTION)),
        "error: a wrong field": lambda: told(llm.chat(QUESTION, top_p=7)),
        "error: a prompt that is too long": lambda: words.complete("word " * 3000).text,
    }


def told(answer: Any) -> dict[str, Any]:
    """What an application reads of an answer."""
    whole = answer.raw
    return {
        "text": answer.message.content,
        "reason": whole.choices[0].finish_reason,
        "usage": whole.usage.model_dump(include={"prompt_tokens", "completion_tokens", "total_tokens"}),
    }
