"""What an operator asks a worker: how much runs, how long it waited, how soon and how fast tokens come, and what fails."""

from prometheus_client import Counter, Gauge, Histogram

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

RUNNING = Gauge("hr_running_tasks", "Tasks in the engine")
SLOTS = Gauge("hr_worker_slots", "Tasks this worker takes at once")
KV_USE = Gauge("hr_kv_use_ratio", "Share of the engine's KV cache in use")
ENDED = Counter("hr_tasks_ended_total", "Tasks that ended here", ("state", "reason"))
CHUNKS = Counter("hr_chunks_total", "Chunks made by the engine")
TOKENS = Counter("hr_tokens_total", "Tokens made by the engine")
WAITED = Histogram("hr_task_waiting_seconds", "From submission to start", ("lane",), buckets=SECONDS)
FIRST_CHUNK = Histogram("hr_first_token_seconds", "From submission to the first chunk", ("lane",), buckets=SECONDS)
RAN = Histogram("hr_task_running_seconds", "From start to end", ("lane",), buckets=SECONDS)
GIVEN_UP = Counter(
    "hr_given_up_total", "Tasks given up by this worker, by why and what became of them", ("why", "outcome")
)
CONTINUED = Counter(
    "hr_continued_total", "Tasks of lost attempts: gone on with (resumed) or started over (reset)", ("how",)
)
FENCED = Counter("hr_fenced_total", "Writes refused because the task had been taken back")
FLUSHED = Histogram("hr_flush_tasks", "Tasks of one emit call", buckets=(1, 2, 4, 8, 16, 32, 64, 100))
