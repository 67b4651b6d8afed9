"""Copies for shadow pools: at most one a task, bounded, and never to the harm of what they copy."""

import asyncio

import pytest

from shared import shadow
from shared.config import Config, Pool
from shared.errors import BacklogFull
from shared.payer import ANONYMOUS
from shared.policy import Alias, Live, Policy, Shadow, Target
from shared.request import CHAT, Request, from_openai
from shared.shadow import MOST, Shadows

PRIMARY = f"a.0.0.0.{'0' * 26}"
ALIAS = Alias(targets=[Target(model="model-a")], shadow=Shadow(model="model-b"))
CONFIG = Config(
    pools={name: Pool(model=f"model-{name}", engine="echo") for name in "ab"},
    live=Live(Policy(aliases={"chat": ALIAS})),
)
ASKED = from_openai(CONFIG, ANONYMOUS, CHAT, b'{"model":"chat","messages":[]}')


class Submitter:
    """Takes what it is given, once it is allowed to."""

    def __init__(self) -> None:
        self.taken: list[tuple[Request, str]] = []
        self.open = asyncio.Event()
        self.refuses = False

    def new_id(self, request: Request) -> str:
        return f"{request.pool}-{len(self.taken)}"

    async def submit(self, request: Request, task_id: str) -> None:
        await self.open.wait()
        if self.refuses:
            raise BacklogFull(request.pool, "batch", 1)
        self.taken.append((request, task_id))


@pytest.fixture
def submitter(no_task_left: None) -> Submitter:
    return Submitter()


def counted(what: str) -> float:
    value: float = shadow.SHADOWS.labels(what)._value.get()
    return value


async def test_a_copy_names_what_it_copies_and_has_an_id_of_its_own(submitter: Submitter) -> None:
    shadows = Shadows(submitter)
    submitter.open.set()
    shadows.cast(ASKED, PRIMARY)
    await shadows.settle()
    ((copy, task_id),) = submitter.taken
    assert (copy.task.shadow_of, copy.pool, task_id) == (PRIMARY, "b", "b-0")


async def test_a_request_without_a_shadow_casts_none(submitter: Submitter) -> None:
    shadows = Shadows(submitter)
    assert ASKED.shadow is not None
    shadows.cast(ASKED.shadow, PRIMARY)
    await shadows.settle()
    assert submitter.taken == []


async def test_no_more_than_so_many_are_under_way_and_the_rest_is_dropped_and_counted(submitter: Submitter) -> None:
    shadows, before = Shadows(submitter), counted("dropped")
    for _ in range(MOST + 3):
        shadows.cast(ASKED, PRIMARY)
    assert counted("dropped") - before == 3
    submitter.open.set()
    await shadows.settle()
    assert len(submitter.taken) == MOST


async def test_a_refused_copy_is_counted_and_forgotten(submitter: Submitter) -> None:
    shadows, before = Shadows(submitter), counted("refused")
    submitter.refuses = True
    submitter.open.set()
    shadows.cast(ASKED, PRIMARY)
    await shadows.settle()
    assert counted("refused") - before == 1
