"""What an operator asks ingress: how many requests, how they ended, and how long clients wait."""

from prometheus_client import Counter, Gauge, Histogram

REQUESTS = Counter("hr_http_requests_total", "Requests, by route and status", ("route", "status"))
SUBMITTED = Counter("hr_submitted_total", "Tasks submitted over HTTP", ("pool", "lane"))
REFUSED = Counter("hr_refused_total", "Requests refused, by error code", ("code",))
WAITING = Gauge("hr_http_waiting", "Clients that wait for an answer")
ANSWERED = Histogram("hr_http_answer_seconds", "From the request to its whole answer", ("route",),
                     buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300))  # fmt: skip
FIRST_BYTE = Histogram("hr_http_first_chunk_seconds", "From the request to the first chunk of a stream", ("route",),
                       buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30))  # fmt: skip
