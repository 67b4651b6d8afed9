"""What Redis must hold once all work is done: read whole, then judged, by nothing that the services use to write it.

    content = audit.read(url, shard)                          one shard
    audit.faults_of_tasks(content, acknowledged, limits)      promises 1 to 4: each task, its log, its dead letter
    audit.faults_of_drained(content)                          promise 7: nothing waits, is held, or is left behind
    audit.faults_of_memory(before, content)                   promise 7: what stays is no larger than it was

Each answers faults in words; no fault is an empty list. Tasks and logs must not have expired: keep them long in `limits`.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import msgspec
from msgspec import Struct
from redis import Redis

from shared import keys
from shared.config import Limits
from shared.keys import ShardKeys
from shared.lifecycle import State
from shared.messages import Chunks, Event, Finished, Reset, Resumed, decode_event

PAGE = 500
"""Keys of one pipeline."""
NODE_BYTES = 8192
"""What an empty stream or hash may keep: Redis frees their memory by the node, not by the entry."""
HISTORY_BYTES = 8192
"""Above it, attempts are no longer remembered (lua/lib/task.lua)."""


class StreamContent(Struct, frozen=True):
    entries: list[dict[str, str]]
    groups: dict[str, tuple[int, int]]
    """Per group: consumers, pending entries."""


class Content(Struct, frozen=True):
    """One shard. Names are keys without the shard's prefix."""

    tasks: dict[str, dict[str, str]]
    """Hashes by task id; notes of cancelled unknown ids among them."""
    logs: dict[str, list[Event]]
    sorted_sets: dict[str, list[str]]
    sets: dict[str, set[str]]
    hashes: dict[str, dict[str, str]]
    """All but those of tasks."""
    strings: dict[str, str]
    streams: dict[str, StreamContent]
    """All but logs."""
    lasting: dict[str, int]
    """Bytes of each key that does not expire."""
    strangers: list[str]
    """Keys of the shard that hold a type that no service makes."""

    def entries(self, stream: str) -> list[dict[str, str]]:
        return self.streams[stream].entries if stream in self.streams else []


def read(url: str, shard: ShardKeys) -> Content:
    content = Content({}, {}, {}, {}, {}, {}, {}, {}, [])
    with Redis.from_url(url, decode_responses=True, protocol=2, socket_timeout=60) as redis:
        names = [key.removeprefix(shard.base) for key in redis.scan_iter(shard.base + "*", count=1000)]
        for start in range(0, len(names), PAGE):
            _read_page(redis, shard.base, names[start : start + PAGE], content)
    return content


READING: dict[str, tuple[str, ...]] = {
    "hash": ("HGETALL",),
    "zset": ("ZRANGE", "0", "-1"),
    "set": ("SMEMBERS",),
    "string": ("GET",),
    "stream": ("XRANGE", "-", "+"),
}


def _read_page(redis: Any, base: str, names: list[str], content: Content) -> None:
    kinds = _each(redis, (("TYPE", base + name) for name in names))
    lasting = [
        name for name, ttl in zip(names, _each(redis, (("TTL", base + n) for n in names)), strict=True) if ttl == -1
    ]
    sizes = _each(redis, (("MEMORY", "USAGE", base + name, "SAMPLES", "0") for name in lasting))
    content.lasting.update(zip(lasting, sizes, strict=True))
    content.strangers.extend(name for name, kind in zip(names, kinds, strict=True) if kind not in READING)
    known = [(name, READING[kind]) for name, kind in zip(names, kinds, strict=True) if kind in READING]
    values = _each(redis, ((command, base + name, *rest) for name, (command, *rest) in known))
    for (name, (command, *_)), value in zip(known, values, strict=True):
        if name.startswith("task:"):
            content.tasks[name[5:]] = value
        elif name.startswith("log:"):
            content.logs[name[4:]] = [decode_event(fields["e"].encode()) for _, fields in value]
        elif command == "HGETALL":
            content.hashes[name] = value
        elif command == "ZRANGE":
            content.sorted_sets[name] = value
        elif command == "SMEMBERS":
            content.sets[name] = set(value)
        elif command == "GET":
            content.strings[name] = value
        else:
            groups = {
                group["name"]: (group["consumers"], group["pending"]) for group in redis.xinfo_groups(base + name)
            }
            content.streams[name] = StreamContent([fields for _, fields in value], groups)


def _each(redis: Any, commands: Iterable[Sequence[str]]) -> Any:
    with redis.pipeline(transaction=False) as pipeline:
        for command in commands:
            pipeline.execute_command(*command)
        return pipeline.execute()


def faults_of_tasks(content: Content, acknowledged: Collection[str], limits: Limits) -> list[str]:
    """Each acknowledged task is there; each that is there has ended once, within its limits, with a whole log."""
    faults = [f"{id}: acknowledged, and not there" for id in acknowledged if id not in content.tasks]
    dead = [letter for letter in content.entries("dead") if letter["k"] == "task"]
    letters = Counter(letter["t"] for letter in dead)
    for id, task in content.tasks.items():
        if "tombstone" not in task:
            found = [*_faults_of_end(task, limits), *_faults_of_log(task, content.logs.get(id, []))]
            if letters[id] != is_dead(task, limits):
                found.append(f"it has {letters[id]} dead letters")
            faults += [f"{id}: {fault}" for fault in found]
    faults += [f"{id}: a dead letter without its task" for id in letters if id not in content.tasks]
    faults += [f"dead letter of {letter['t']} cannot be tried again" for letter in dead if not letter["body"]]
    strangers = [name for name in (*content.strings, *content.sets) if not name.startswith(KNOWN)]
    return faults + [f"{name}: a key of no service" for name in (*content.strangers, *strangers)]


def is_dead(task: dict[str, str], limits: Limits) -> bool:
    """It was given up: a dead letter is owed."""
    charged_out = int(task.get("crashes", 0)) >= limits.crashes or int(task.get("failures", 0)) > limits.failures
    return task["state"] == State.FAILED and charged_out


def _faults_of_end(task: dict[str, str], limits: Limits) -> Iterator[str]:
    if not State(task["state"]).terminal:
        yield f"still {task['state']}"
        return
    finished = decode_event(task["finished"].encode())
    assert isinstance(finished, Finished)
    told = (finished.state, str(finished.status), str(finished.last), str(finished.attempt))
    kept = (task["state"], task["status"], task.get("last", "0"), task.get("attempts", "0"))
    if told != kept:
        yield f"its hash says {kept}, its end says {told}"
    if int(task["finished_at_ms"]) < int(task["created_at_ms"]):
        yield "it ended before it came"
    if int(task.get("crashes", 0)) > limits.crashes or int(task.get("failures", 0)) > limits.failures + 1:
        yield f"{task.get('crashes')} crashes and {task.get('failures')} failures are above the limits"
    yield from _faults_of_history(task)


def _faults_of_history(task: dict[str, str]) -> Iterator[str]:
    """Every attempt but the last is remembered, and the last one if it was no end by itself; each is charged once at most."""
    text, attempts = task.get("history", ""), int(task.get("attempts", 0))
    numbers = [msgspec.json.decode(line)["attempt"] for line in text.splitlines()]
    if len(text) > HISTORY_BYTES:
        return
    if numbers != list(range(1, len(numbers) + 1)) or not attempts - 1 <= len(numbers) <= attempts:
        yield f"{attempts} attempts, and its history has {numbers}"
    charges = int(task.get("crashes", 0)) + int(task.get("failures", 0))
    if charges > len(numbers):
        yield f"{charges} crashes and failures, and its history has {len(numbers)} attempts"


def _faults_of_log(task: dict[str, str], log: list[Event]) -> list[str]:
    """Numbers are dense; whatever a new attempt says of the old output is true; the end comes once, and last."""
    attempt = last = 0
    for before, event in zip([None, *log], log[:-1], strict=False):
        match event:
            case Reset():
                fits, last = event.attempt >= attempt and event != before, 0
            case Resumed():
                fits = event.last == last and event.attempt >= attempt and event != before
            case Chunks():
                fits, last = event.first == last + 1 <= event.last and event.attempt >= attempt, event.last
            case _:
                return [f"its log has {event} before its end"]
        if not fits:
            return [f"its log has {event} behind chunk {last} of attempt {attempt}"]
        attempt = event.attempt
    end = log[-1] if log else None
    if not isinstance(end, Finished):
        return [f"its log ends with {end}"]
    if State(task["state"]).terminal and end != decode_event(task["finished"].encode()):
        return [f"its log ends with {end}, its hash with {task['finished']}"]
    return [] if end.last == last else [f"its log has {last} chunks, and its end says {end.last}"]


KNOWN = ("running:", "prefix:", "group:", "flight:", "cache:")
"""Sets and strings of services."""
HELD = ("leases", "expiry", "attached", "later", "backlog:", "followers:", "turns:", "rested:")
"""Sorted sets of unfinished tasks, and of who waits for a turn."""
COUNTED = ("waiting", "held", "means", "paces")
"""Hashes of what waits or runs."""
CLOCKS = re.compile(r"[vt]:.*")
"""Fields of `fair` that say who is ahead of whom."""
PASSED_ON = ("in", "outbox", "work:")
"""Streams whose entries go when they are dealt with."""


def faults_of_drained(content: Content) -> list[str]:
    """Nothing waits, is leased, handed out or pending, and nobody is ahead of anybody; only workers that are announced have a
    stream or a suspect; what is remembered of prompts and answers expires."""
    faults = [f"{name} holds {ids[:3]}" for name, ids in content.sorted_sets.items() if name.startswith(HELD)]
    faults += [f"{name} holds {sorted(ids)[:3]}" for name, ids in content.sets.items()]
    faults += [f"{name} says {content.hashes[name]}" for name in COUNTED if name in content.hashes]
    faults += [
        f"fair says {field} {said}" for field, said in content.hashes.get("fair", {}).items() if CLOCKS.match(field)
    ]
    faults += [f"{name} never expires" for name in content.strings if name in content.lasting]
    faults += [f"{name} leads nobody" for name in content.strings if name.startswith("flight:")]
    for name, stream in content.streams.items():
        if name.startswith(PASSED_ON) and stream.entries:
            faults.append(f"{name} holds {len(stream.entries)} entries")
        faults += [f"{name} has {group[1]} pending in {of}" for of, group in stream.groups.items() if group[1]]
    announced = content.hashes.get("workers", {}).keys()
    stayed = {name.removeprefix("work:") for name in content.streams if name.startswith("work:")}
    stayed |= content.hashes.get("suspects", {}).keys()
    return faults + [f"something is left of the worker {name}" for name in stayed - announced]


def faults_of_memory(before: Content, after: Content) -> list[str]:
    """Keys that never expire are those of before, and no larger but for the grain of Redis' own memory.

    The bus is left out, which forgets by time when it is written, and the dead letters, which stay on purpose.
    """
    faults = []
    for name, size in after.lasting.items():
        if not name.startswith(("bus:", "dead")) and size > before.lasting.get(name, 0) + NODE_BYTES:
            faults.append(f"{name} has {size} bytes, before it had {before.lasting.get(name, 0)}")
    return faults


def faults_of_replies(url: str, name: str, content: Content) -> list[str]:
    """Promise 2, outside: each task that names the reply stream `name` has replies there, all of its one end."""
    told: dict[str, set[tuple[str, str]]] = {}
    with Redis.from_url(url, decode_responses=True, protocol=2, socket_timeout=60) as redis:
        entries: Any = redis.xrange(keys.reply(name))
    for _, fields in entries:
        told.setdefault(fields["id"], set()).add((fields["event"], fields["status"]))
    faults = []
    for id, task in content.tasks.items():
        if task.get("reply_to") == name:
            owed = {(f"{id}:{task['epoch']}", task["state"])}
            if told.get(id) != owed:
                faults.append(f"{id}: its replies are {told.get(id)}, owed is {owed}")
    return faults
