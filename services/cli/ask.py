"""`headrace ask`: one question, its answer streamed."""

import argparse

import msgspec

from services.cli.chat import ask
from services.cli.failure import OK
from services.cli.progress import Ticker


async def run(arguments: argparse.Namespace) -> int:
    def show(text: str) -> None:
        if not arguments.json:
            print(text, end="", flush=True)

    ticker = Ticker()
    told = await ask(
        arguments.url,
        arguments.model,
        arguments.question,
        max_tokens=arguments.max_tokens,
        temperature=arguments.temperature,
        on_text=show,
        on_place=ticker.show if ticker.live else None,
    )
    print(msgspec.json.encode(told).decode() if arguments.json else "")
    return OK
