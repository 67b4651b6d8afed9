"""What an operator asks the scheduler: how much waits, for how long, and for what."""

from prometheus_client import Counter, Gauge

SHARD = ("pool", "shard")

BACKLOG = Gauge("hr_backlog_tasks", "Tasks waiting for a free slot", (*SHARD, "lane"))
TENANTS = Gauge("hr_backlog_tenants", "Tenants that have waiting tasks and are below their cap", (*SHARD, "lane"))
BACKLOG_ETA = Gauge(
    "hr_backlog_eta_seconds", "Expected wait of a task that would come last in its lane; -1: unknown", (*SHARD, "lane")
)
OLDEST = Gauge(
    "hr_backlog_oldest_age_seconds", "Age of the oldest task of the tenant whose turn is next", (*SHARD, "lane")
)
ARRIVALS = Gauge("hr_arrivals_entries", "Entries of `in` that are not admitted yet", SHARD)
WORKERS = Gauge("hr_workers", "Workers with a fresh beat", SHARD)
SLOTS = Gauge(
    "hr_slots",
    "Slots announced by workers with a fresh beat, as far as tasks of the lane may take them",
    (*SHARD, "lane"),
)
BUSY = Gauge("hr_slots_busy", "Slots of those that hold a task", SHARD)
ADMITTED = Counter("hr_admitted_total", "Tasks put into the waiting order", SHARD)
CACHE = Counter(
    "hr_cache_total", "Tasks whose answer may be that of another one: hit, followed, miss, refresh", (*SHARD, "outcome")
)
DISPATCHED = Counter("hr_dispatched_total", "Tasks handed to workers", SHARD)
TAKEN_BACK = Counter("hr_taken_back_total", "Tasks taken back from silent workers", (*SHARD, "stage"))
QUARANTINED = Counter("hr_quarantined_total", "Tasks given up because their workers died, at the taking back", SHARD)
DUE = Counter(
    "hr_due_total",
    "Tasks that time moved: expired, cancelled (nobody waits), told to stop, retries put back",
    (*SHARD, "what"),
)
REPAIRED = Counter("hr_repaired_total", "Unfinished tasks that were nowhere; above 0 only after data was lost", SHARD)
DOOR = Counter(
    "hr_door_entries_total", "Entries of hr:requests, by outcome: accepted, known or an error code", ("outcome",)
)
ORPHANS = Counter(
    "hr_quota_orphans_total", "Reservations that only the sweep has settled, by what became of the task", ("task",)
)
BATCHES = Gauge("hr_batches", "Batches that this scheduler feeds")
BATCH_OLDEST = Gauge("hr_batches_oldest_age_seconds", "Age of the oldest of them; 0: there is none")
BATCH_ITEMS = Counter("hr_batch_items_total", "Items of batches whose lines are in a file, by how they ended", ("end",))
BATCH_WAITS = Counter(
    "hr_batch_waits_total", "Times that a batch had to wait: store, redis, or the code of a refusal", ("why",)
)
