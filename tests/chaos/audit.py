"""design.md's promises, held against the clients' history, the witness and what is left in Redis."""

import json
from collections.abc import Iterable, Iterator

from msgspec import Struct

from shared.config import Limits
from shared.lifecycle import State
from tests.chaos.history import Event, History, Story
from tests.chaos.witness import Hash, Trace, Witness

TERMINAL = {state.value for state in State if state.terminal}
QUARANTINED = "task_quarantined"
POISON_CODES: dict[str, set[str]] = {
    "exit": {QUARANTINED},
    "dead": {QUARANTINED},
    "error": set(),
    "busy": set(),
    "busy-once": set(),  # once in each worker, of which there are many
    "hang": {"run_time_exceeded"},
}
"""Error codes that a poisoned task may fail with; empty: whatever the engine said."""


OF_PROCESSES = ("kill", "terminate", "kill service", "rolling restart", "zombie", "kill engine", "freeze engine")
"""Faults after which no door may say 503."""
AWAY_S = 60.0
"""After such a fault a door may say 503: a stall, a time-out, and the patience of a call."""


class Breach(Struct, frozen=True):
    promise: str
    key: str
    """Of the ticket; else of what is concerned."""
    what: str


class Audit:
    def __init__(self, history: History, witness: Witness, limits: Limits) -> None:
        self._history, self._witness, self._limits = history, witness, limits

    def breaches(self) -> list[Breach]:
        return [
            *(breach for story in self._history.stories.values() for breach in self._story(story)),
            *(breach for id, trace in self._witness.traces.items() for breach in self._trace(id, trace)),
            *self._others(),
        ]

    # -- one ticket, as its clients saw it

    def _story(self, story: Story) -> Iterator[Breach]:
        key, seen = story.ticket.key, list(story.of("seen"))
        left = {event.details["id"] for event in story.of("left")}
        ids = {event.details["id"] for event in seen if event.details["id"]} | set(story.ids)
        if story.acknowledged and not seen:
            yield Breach("nothing lost", key, "acknowledged, and no client ever saw its end")
        elif not seen:
            yield Breach("doors open again", key, "no attempt to submit it succeeded")
        if len(ids - left) > 1:
            yield Breach("one task a key", key, f"became {len(ids - left)} tasks: {sorted(ids)}")
        for event in story.of("gap"):
            yield Breach("no gap, no repeat", key, event.details["why"])
        ends = {(event.details["id"], event.details["state"]) for event in seen}
        if len(ends) > len({id for id, _ in ends}):
            yield Breach("one terminal state", key, f"seen to end as {sorted(ends)}")
        if len(replies := {e.details["event"] for e in seen if e.details["where"] == "reply"}) > 1:
            yield Breach("one reply", key, f"replies {sorted(replies)}")
        for event in seen:
            yield from self._seen(story, event)
        for event in (*story.of("broken"), *story.of("reset")):
            if not (story.ticket.expected or story.ticket.text).startswith(event.details.get("partial", "")):
                yield Breach("no garbled text", key, f"partial text {event.details['partial']!r}")

    def _seen(self, story: Story, event: Event) -> Iterator[Breach]:
        ticket, said = story.ticket, event.details
        state, code, text = said["state"], said.get("code"), said.get("text", "")
        if state == "completed" and text != ticket.expected:
            yield Breach("no garbled text", ticket.key, f"{said['where']}: {text!r}, expected {ticket.expected!r}")
        if not self._may_end(story, said["id"], state, code):
            yield Breach("no end without reason", ticket.key, f"{said['where']} says {state} {code or ''}: {said}")
        found = self._hash(said["id"])
        if found and found.get("state") != state:
            yield Breach("one terminal state", ticket.key, f"{said['where']} says {state}, Redis {found['state']}")
        answered = [e.details["state"] for e in story.of("cancel answered") if e.details["state"] in TERMINAL]
        if any(answer != state for answer in answered):
            yield Breach("cancelled is cancelled", ticket.key, f"cancel answered {answered}, it ended as {state}")

    def _may_end(self, story: Story, id: str, state: str, code: str | None) -> bool:
        ticket = story.ticket
        match state:
            case "completed":
                return bool(ticket.expected)
            case "cancelled":
                return any(True for _ in story.of("cancelling"))
            case "expired":
                return ticket.expires_in_s > 0
            case "failed" if code == QUARANTINED:  # poison, or faults hit its workers so often
                return self._crashes(id) >= self._limits.crashes
            case "failed" if ticket.poison in POISON_CODES:
                codes = POISON_CODES[ticket.poison]
                return code in codes or not codes
        return False

    # -- one task, as its services and Redis tell it

    def _trace(self, id: str, trace: Trace) -> Iterator[Breach]:
        key = self._history.by_id.get(id, id)
        if not trace.ends:
            yield Breach("nothing lost", key, f"{id} has not ended: {trace.story}")
        elif len(trace.ends) > 1:
            yield Breach("one terminal state", key, f"{id} ended {len(trace.ends)} times: {trace.ends}")
        for fault in trace.faults:
            yield Breach("no gap, no repeat", key, f"{id} on the bus: {fault}")
        if trace.ends and trace.found:
            yield from self._found(key, id, trace, trace.found)

    def _found(self, key: str, id: str, trace: Trace, found: Hash) -> Iterator[Breach]:
        end = trace.ends[0]
        if found["state"] != end["state"]:
            yield Breach("one terminal state", key, f"{id}: the bus says {end['state']}, its hash {found['state']}")
        ended = [json.loads(line) for line in found.get("history", "").splitlines()]
        if int(found.get("crashes", 0)) > self._limits.crashes:
            yield Breach("attempts are limited", key, f"{id}: {found['crashes']} crashes")
        if int(found.get("failures", 0)) > self._limits.failures + 1:
            yield Breach("attempts are limited", key, f"{id}: {found['failures']} failures")
        if len({attempt["attempt"] for attempt in ended}) != len(ended):
            yield Breach("one terminal state", key, f"{id}: an attempt ended twice: {ended}")
        if found["state"] == "completed" and end.get("streamed") and trace.text not in found.get("result", ""):
            content = json.loads(found["result"])["choices"][0]["message"]["content"]
            if content != trace.text:
                yield Breach("no garbled text", key, f"{id}: published {trace.text!r}, the result is {content!r}")

    def _hash(self, id: str) -> Hash | None:
        trace = self._witness.traces.get(id)
        return trace.found if trace else None

    def _crashes(self, id: str) -> int:
        return int((self._hash(id) or {}).get("crashes", 0))

    # -- the rest

    def _others(self) -> Iterator[Breach]:
        for event in self._history.others:
            said = event.details
            if event.what == "stuck":
                yield Breach("services come back", event.key, str(said))
            elif event.what == "died" and not self._may_die(event.key, said["how"], said["why"]):
                yield Breach("nobody dies on its own", event.key, f"{said['how']}, after {said['why'] or 'nothing'}")
        for story in self._history.stories.values():
            for event in story.of("refused"):
                if event.details.get("status") == 503 and not self._redis_was_away(event.at_s):
                    yield Breach("no error without reason", story.ticket.key, f"503 at {event.at_s} s: {event.details}")
            for event in story.of("unexpected"):
                yield Breach("no error without reason", story.ticket.key, event.details["why"])

    def _redis_was_away(self, at_s: float) -> bool:
        """A fault that touches Redis, or the way to it, not long before: others are waited for, and never told."""
        faults = (
            event
            for event in self._history.others
            if event.what == "fault" and event.details["kind"] not in OF_PROCESSES
        )
        return any(at_s - AWAY_S < event.at_s < at_s for event in faults)

    def _may_die(self, name: str, how: str, why: str) -> bool:
        """`why`: what was done to it; empty: nothing."""
        match why:
            case "SIGKILL":
                return True
            case "SIGTERM":
                return how in ("exit code 0", "killed by SIGTERM")  # the latter: it was only starting
        return name.startswith("inference") and how == "exit code 1" and self._deadly

    @property
    def _deadly(self) -> bool:
        """Something was asked, or done to an engine, that a worker does not survive."""
        asked = any(story.ticket.poison in ("exit", "dead") for story in self._history.stories.values())
        return asked or any(e.details.get("kind") == "kill engine" for e in self._history.others if e.what == "fault")


def quarantined(history: History) -> dict[str, int]:
    """Tasks given up after the crash limit: poison, and those that faults hit so often."""
    counts = {"poison": 0, "others": 0}
    for story in history.stories.values():
        if any(event.details.get("code") == QUARANTINED for event in story.of("seen")):
            counts["poison" if story.ticket.poison else "others"] += 1
    return counts


def run_twice(traces: Iterable[Trace]) -> int:
    return sum(int((trace.found or {}).get("attempts", 0)) > 1 for trace in traces)
