"""Every key, stream and group name has its one author here.

All keys of a shard share the hash tag `{pool.k}`, so that each transition is one atomic script, on a cluster too.
"""

from shared.ids import Place, bucket, place_of
from shared.lifecycle import Lane

PREFIX = "hr:"
REQUESTS = f"{PREFIX}requests"
"""stream | the door of other systems | XADD by producers | read by the scheduler, group `front`."""
REFUSED = f"{PREFIX}refused"
"""stream, capped | entries of the door that name no reply stream: payload and reason | scheduler | operator."""
SHARDS = f"{PREFIX}shards"
"""hash | every shard that exists, with its partitions | scheduler | all."""
MARK = f"{PREFIX}mark"
"""string, expires | nothing: written so that there is a write to wait for | durable calls | nobody."""

METERED = f"{PREFIX}metered"
"""zset | tenants whose tasks reserve requests and tokens, by time of the last word of it, Unix ms | shared/quota.py | scheduler."""

BATCHES = f"{PREFIX}batches"
"""zset | batches that have not been tidied away, by when somebody must look at them, Unix ms | ingress, scheduler | scheduler."""

FILES = f"{PREFIX}files"
"""zset | every file, begun or whole, by when it is gone, Unix ms | shared/files.py | scheduler, which removes it then."""

OBJECTS = f"{PREFIX}objects"
"""zset | objects of tasks, by when somebody must look whether their task is still there, Unix ms | shared/large.py | scheduler."""

WEBHOOKS = f"{PREFIX}{{webhooks}}"
"""stream | deliveries to webhooks that are to be tried at once | notifier, promote, scheduler, ingress | notifier, group `webhooks`."""
WEBHOOKS_LATER = f"{WEBHOOKS}:later"
"""zset | deliveries that wait for their next try, by when it is due, Unix ms | put_off | promote."""
WEBHOOKS_GONE = f"{WEBHOOKS}:gone"
"""zset | digests of URLs that answered 410, by until when nothing is sent there, Unix ms | notifier | the same, requeue."""

FRONT, SCHEDULER, WORKERS, OUTBOX, SENDERS = "front", "scheduler", "workers", "outbox", "webhooks"
"""Consumer groups, one on each kind of stream."""

IDEMPOTENCY_SLOTS = 256
"""Hash tags over which reservations are spread; any number works, more only spreads finer over a cluster."""


class ShardKeys:
    """The keys of one shard. Building one costs a dozen short strings: make it once per shard, not per task."""

    def __init__(self, pool: str, shard: int) -> None:
        self.pool, self.shard, self.tag = pool, shard, f"{pool}.{shard}"
        self.base = base = f"{PREFIX}{{{self.tag}}}:"
        self.arrivals = f"{base}in"
        """stream | id of each new task, and wake-ups for free credits | submit, finish, beat | group `scheduler`."""
        self.turns = tuple(f"{base}turns:{lane}" for lane in Lane)
        """zset a lane | tenants that have waiting tasks and are below their cap, by virtual time | scripts | dispatch."""
        self.rested = tuple(f"{base}rested:{lane}" for lane in Lane)
        """zset a lane | virtual times of tenants that do not take turns, until the lane's own passes them | scripts | scripts."""
        self.waiting = f"{base}waiting"
        """hash | `n:<tenant>` waiting tasks, `b:<tenant>` waiting tokens of the lane batch, `l:<lane>` waiting tasks | scripts | all."""
        self.fair = f"{base}fair"
        """hash | `v`, `v:<lane>` virtual times, `t:<lane>` a lane's next tag, `share:<lane>`; `run_ms:<lane>` moving mean of a run,
        `pace:<lane>` `<tasks a second> <at ms>`, `slots` of live workers | dispatch, all that end tasks | the same, submit, place."""
        self.tenants = f"{base}tenants"
        """hash | `<weight> <most running>` of each tenant that the configuration names | scheduler | scripts."""
        self.means = f"{base}means"
        """hash | moving mean of the tokens that a tenant's tasks make | all that end tasks | dispatch."""
        self.paces = f"{base}paces"
        """hash | `<lane> <tenant>`: `<tasks a second> <at ms> <since ms>` while its backlog stands | dispatch | submit, place."""
        self.held = f"{base}held"
        """hash | `<worker> <lane>`: work entries of that lane | dispatch, all that clear entries | dispatch."""
        self.leases = f"{base}leases"
        """zset | running tasks by end of lease, Unix ms | start, beat, finish | reap."""
        self.expiry = f"{base}expiry"
        """zset | every task that has not ended, by deadline, Unix ms | submit, all that end tasks | due, repair."""
        self.later = f"{base}later"
        """zset | retries and tasks that may not start yet, by due time, Unix ms | release, dispatch, submit, admit | due."""
        self.attached = f"{base}attached"
        """zset | tasks that are cancelled when nobody waits, by end of the waiter's lease, Unix ms | submit, ingress | due."""
        self.suspects = f"{base}suspects"
        """hash | `<task> <epoch>` of the suspect that each worker has: one at most | dispatch, reap, retire."""
        self.workers = f"{base}workers"
        """hash | `<beat ms> <slots> <of these normal and batch> <of these batch> <announcement>` | beat, retire, reap | dispatch."""
        self.readers = f"{base}readers"
        """zset | bus groups by end of lease, Unix ms | every reader | the scheduler, which removes groups left behind."""
        self.outbox = f"{base}outbox"
        """stream | tasks whose reply must leave the shard | finish | notifier, group `outbox`."""
        self.dead = f"{base}dead"
        """stream, capped | tasks given up and replies that cannot be delivered: payload, reason, history | scripts | operator."""

    def task(self, task_id: str) -> str:
        """hash | the truth about a task; expires `results_kept_s` after its end | scripts | all."""
        return f"{self.base}task:{task_id}"

    def log(self, task_id: str) -> str:
        """stream | replayable events and the journal; expires `log_kept_s` after its end | start, emit, finish | readers."""
        return f"{self.base}log:{task_id}"

    def bus(self, partition: int) -> str:
        """stream | live events of the last two minutes | scripts | a group per reader."""
        return f"{self.base}bus:{partition}"

    def work(self, worker: str) -> str:
        """stream | tasks handed to that worker, never deeper than its slots | dispatch | that worker, group `workers`."""
        return f"{self.base}work:{worker}"

    def backlog(self, lane: Lane, tenant: str) -> str:
        """zset | waiting tasks of a tenant by place (ms): when they came, or the first of their prefix group | scripts | dispatch."""
        return f"{self.base}backlog:{lane}:{tenant}"

    def running(self, tenant: str) -> str:
        """set | tasks of a tenant that are handed out or running | dispatch, all that take tasks back or end them | scripts."""
        return f"{self.base}running:{tenant}"

    def followers(self, digest: str) -> str:
        """zset | tasks that wait for the answer to requests of that digest, the most urgent first | admit, all that end tasks | follow."""
        return f"{self.base}followers:{digest}"

    def kept_answer(self, digest: str) -> str:
        """string, expires | the task whose answer is kept for requests of that digest | all that end tasks | admit."""
        return f"{self.base}cache:{digest}"

    def flight(self, digest: str) -> str:
        """string, expires | the task that is making the answer for requests of that digest | admit, follow, all that end tasks | the same."""
        return f"{self.base}flight:{digest}"

    def prefix(self, digest: str) -> str:
        """string, expires | the worker whose KV cache holds prompts that begin so | dispatch | dispatch."""
        return f"{self.base}prefix:{digest}"

    def group(self, digest: str) -> str:
        """string, expires | place of the batch tasks whose prompts begin so | admit | admit."""
        return f"{self.base}group:{digest}"

    def session(self, session: str) -> str:
        """zset | recent tasks of a session by time of submission, capped | submit | ingress, notifier."""
        return f"{self.base}session:{session}"

    def tenant(self, tenant: str) -> str:
        """zset | recent tasks of a tenant by time of submission, capped | submit | ingress."""
        return f"{self.base}tenant:{tenant}"


_shards: dict[tuple[str, int], ShardKeys] = {}


def shard_keys(pool: str, shard: int) -> ShardKeys:
    keys = _shards.get((pool, shard))
    if keys is None:
        keys = _shards[pool, shard] = ShardKeys(pool, shard)
    return keys


def keys_of(task_id: str) -> tuple[ShardKeys, Place]:
    """Raises: InvalidTaskId."""
    place = place_of(task_id)
    return shard_keys(place.pool, place.shard), place


def reply(name: str) -> str:
    """stream | results for another system | notifier | that system's own group."""
    return f"{PREFIX}reply:{name}"


def door(producer: str) -> str:
    """stream | the door of one system, which the configuration binds to its tenant | that system | scheduler, group `front`."""
    return f"{REQUESTS}:{producer}"


def quota(tenant: str, what: str) -> str:
    """hash, zset | windows and reservations of a tenant's rates, expiring | take, settle | the same."""
    return f"{PREFIX}{{q.{tenant}}}:{what}"


def batch(batch_id: str, what: str) -> str:
    """hash, bitmap, list | a batch: `state`, `open` items, `ended` items, segments that are `unfiled` | its scripts | the same, ingress."""
    return f"{PREFIX}{{b.{batch_id}}}:{what}"


def batches_of(tenant: str) -> str:
    """zset, expires | batches of a tenant by creation, Unix ms | ingress | ingress."""
    return f"{BATCHES}:{tenant}"


def file(file_id: str) -> str:
    """hash | the record of a file | file_make, file_append, file_mark | ingress, scheduler."""
    return f"{PREFIX}{{f.{file_id}}}:record"


def file_parts(file_id: str) -> str:
    """zset | keys of the objects that a file is made of, by the place of their first bytes | file_make, file_append | all readers."""
    return f"{PREFIX}{{f.{file_id}}}:parts"


def files_of(tenant: str) -> str:
    """zset | files of a tenant by creation, Unix ms | shared/files.py | ingress."""
    return f"{FILES}:{tenant}"


def idempotency(tenant: str, key: str) -> str:
    """string | `<fingerprint> <task id>`; expires with the result | reserve | reserve.

    A slash is in no name: with a colon, one tenant's key could be that of a tenant whose name begins alike.
    """
    return f"{PREFIX}{{i.{bucket(f'{tenant}/{key}', IDEMPOTENCY_SLOTS)}}}:idem:{tenant}/{key}"


def reader_group(replica: str) -> str:
    """The bus group of one replica: every reader sees every event of the partitions it reads."""
    return f"reader:{replica}"
