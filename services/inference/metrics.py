"""What an operator asks a worker: how much runs, how long it waited, how soon and how fast tokens come, and what fails."""

from prometheus_client import Counter, Gauge, Histogram

from services.inference.breaker import State, Why
from services.inference.capacity import Signal
from services.inference.scripts import Running
from shared.lifecycle import Lane
from shared.messages import Task

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
RATIOS = (0.1, 0.25, 0.5, 0.67, 0.8, 0.9, 1.1, 1.25, 1.5, 2, 4, 10)

RUNNING = Gauge("hr_running_tasks", "Tasks in the engine")
SLOTS = Gauge("hr_worker_slots", "Tasks of this lane and of less urgent ones that this worker takes at once", ("lane",))
DECREASES = Counter(
    "hr_capacity_decreases_total",
    "Times that the slots of a lane were cut, by what the engine said",
    ("lane", "signal"),
)
WAITING_INSIDE = Gauge("hr_engine_waiting_tasks", "Tasks that wait inside the engine")
PREEMPTIONS = Counter("hr_engine_preemptions_total", "Tasks that the engine put back to wait for room in its KV cache")
KV_USE = Gauge("hr_kv_use_ratio", "Share of the engine's KV cache in use")
ENDED = Counter("hr_tasks_ended_total", "Tasks that ended here", ("state", "reason"))
CHUNKS = Counter("hr_chunks_total", "Chunks made by the engine")
TOKENS = Counter("hr_tokens_total", "Tokens made by the engine")
WAITED = Histogram("hr_task_waiting_seconds", "From submission to start", ("lane",), buckets=SECONDS)
ETA_ERROR = Histogram(
    "hr_eta_error_seconds", "Difference of the wait and the one predicted at submission", ("lane",), buckets=SECONDS
)
ETA_RATIO = Histogram("hr_eta_ratio", "The wait over the one predicted", ("lane",), buckets=RATIOS)
FIRST_CHUNK = Histogram("hr_first_token_seconds", "From submission to the first chunk", ("lane",), buckets=SECONDS)
RAN = Histogram("hr_task_running_seconds", "From start to end", ("lane",), buckets=SECONDS)
GIVEN_UP = Counter(
    "hr_given_up_total", "Tasks given up by this worker, by why and what became of them", ("why", "outcome")
)
BREAKER = Gauge(
    "hr_breaker_state", f"Circuit breaker of the engine: {', '.join(f'{i} {s}' for i, s in enumerate(State))}"
)
OPENED = Counter("hr_breaker_opened_total", "Times that the engine was given nothing for a while, by why", ("why",))
RETRY_BUDGET = Gauge("hr_retry_budget", "Failures that the engine may still cause before its breaker opens")
UPSTREAM_CALLS = Counter(
    "hr_upstream_calls_total", "Calls that an upstream of the openai engine has answered", ("upstream", "outcome")
)
UPSTREAM_OPENED = Counter(
    "hr_upstream_opened_total", "Times that an upstream was given nothing for a while, by why", ("upstream", "why")
)
CONTINUED = Counter(
    "hr_continued_total", "Tasks of lost attempts: gone on with (resumed) or started over (reset)", ("how",)
)
FENCED = Counter("hr_fenced_total", "Writes refused because the task had been taken back")
FLUSHED = Histogram("hr_flush_tasks", "Tasks of one emit call", buckets=(1, 2, 4, 8, 16, 32, 64, 100))

for _lane in Lane:  # series that begin with the first event hide it from rate()
    for _signal in Signal:
        DECREASES.labels(_lane, _signal)
for _why in Why:
    OPENED.labels(_why)


def observe_eta(task: Task, running: Running) -> None:
    """How good the prediction of a task's wait was. One that had to wait for a time of its own tells nothing."""
    if running.eta_ms < 0 or running.attempt > 1 or task.not_before_ms:
        return
    ETA_ERROR.labels(task.lane).observe(abs(running.waited_ms - running.eta_ms) / 1000)
    if running.eta_ms:
        ETA_RATIO.labels(task.lane).observe(running.waited_ms / running.eta_ms)
