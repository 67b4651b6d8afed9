"""What the clients ask for, drawn from a seed."""

import itertools
import random
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import msgspec
from msgspec import Struct

from tests.chaos.history import Ticket

DOORS = {
    "background": 5,  # POST /v1/tasks with a key, then long polls
    "watched": 5,  # the same, then a WebSocket for the task
    "session": 5,  # the same, seen by a page that follows its session
    "whole": 3,  # the OpenAI route with an Idempotency-Key, one answer
    "streamed": 3,  # the same, as a stream
    "bare": 2,  # the OpenAI route as an `openai` client calls it, without a key
    "stream door": 7,  # XADD, the answer on a reply stream
}
KEYED = tuple(door for door in DOORS if door != "bare")
ROOT_WORDS = ("mill", "race", "wheel", "sluice", "weir", "stone", "grain", "flume", "pond", "brook")


PROMPTS = (
    "Name three rivers of Europe.",
    "Tell me a story about a mill and its wheel.",
    "What is the sum of 12 and 30? Explain it step by step.",
    "Describe the sea in the morning.",
    "List five animals that live on a farm.",
    "Why do leaves fall in autumn?",
    "Write a letter to a friend about a journey.",
    "How is bread made?",
)
MAX_TOKENS = 24


POISON: Mapping[str, float] = MappingProxyType(
    {"exit": 0.0003, "dead": 0.0002, "error": 0.004, "busy": 0.0005, "busy-once": 0.005, "hang": 0.0005}
)
"""Trouble that the echo engine makes if its pool has `faults`, and the share of tasks that ask for it. Few are refused as busy: a
worker takes that for load, and runs fewer tasks at once for a while."""
TENANTS = {"default": 5, "millers": 3, "pages": 2}
"""And how often each asks. What may be cancelled by its key is of `default`: the shared stream door cancels for no other."""
LANES = {"normal": 6, "interactive": 2, "batch": 2}
CURED = ("", "busy-once")
"""What completes all the same."""


WAITING = 0.3
"""Share of the tasks that wait until their tenant's rates let them run; others are refused and come again."""


class Shares(Struct, frozen=True, kw_only=True):
    """Of all tasks."""

    cancelled: float = 0.06
    expiring: float = 0.04
    poison: Mapping[str, float] = POISON
    long: float = 0.02


def echoes(seed: int, shares: Shares) -> Iterator[Ticket]:
    """Tasks for the echo engine: it answers with what it was asked, so the answer is known before."""
    dice = random.Random(f"load {seed}")
    for number in itertools.count(1):
        key = f"c{seed}-{number}"
        poison = _one_of(dice, shares.poison)
        words = dice.randint(100, 220) if dice.random() < shares.long else dice.randint(1, 30)
        text = " ".join([f"!{poison} {key}" if poison else key, *dice.choices(ROOT_WORDS, k=words)])
        yield draw(dice, key, text, text if poison in CURED else "", shares, poison=poison)


def prompts(seed: int, answers: Mapping[str, str]) -> Iterator[Ticket]:
    """Tasks for a real model, of prompts whose undisturbed answers are known."""
    dice = random.Random(f"load {seed}")
    for number in itertools.count(1):
        text = dice.choice(sorted(answers))
        ticket = draw(dice, f"c{seed}-{number}", text, answers[text], Shares(poison={}))
        yield msgspec.structs.replace(ticket, max_tokens=MAX_TOKENS)


def draw(dice: random.Random, key: str, text: str, expected: str, shares: Shares, *, poison: str = "") -> Ticket:
    door = _pick(dice, DOORS)
    if poison:
        door = dice.choice(KEYED)
    chance, soon_s = dice.random(), dice.uniform(0.3, 4)
    cancelled = door in ("background", "watched", "session", "stream door") and not poison and chance < shares.cancelled
    expiring = not cancelled and door in KEYED[:3] and not poison and chance < shares.cancelled + shares.expiring
    wishes = {"lane": _pick(dice, LANES)}
    if not cancelled and (tenant := _pick(dice, TENANTS)) != "default":
        wishes["tenant"] = tenant
    if dice.random() < WAITING:
        wishes["on_limit"] = "wait"
    return Ticket(
        key=key,
        wishes={} if door == "bare" else wishes,
        door=door,
        text=text,
        expected=expected,
        expires_in_s=round(soon_s, 2) if expiring else 0.0,
        cancel_after_s=dice.choice([0.0, dice.uniform(0, 2)]) if cancelled else None,
        poison=poison,
        streamed=door in ("watched", "session", "streamed") or (door != "whole" and dice.random() < 0.5),
    )


def _pick(dice: random.Random, weights: Mapping[str, int]) -> str:
    return dice.choices(list(weights), list(weights.values()))[0]


def _one_of(dice: random.Random, shares: Mapping[str, float]) -> str:
    chance = dice.random()
    for name, share in shares.items():
        if (chance := chance - share) < 0:
            return name
    return ""
