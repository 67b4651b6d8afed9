"""What an operator asks the notifier: who listens, how much goes out, who was cut off, and what did not arrive."""

from prometheus_client import Counter, Gauge, Histogram

SOCKETS = Gauge("hr_push_sockets", "Open WebSockets")
SUBSCRIPTIONS = Gauge("hr_push_subscriptions", "Task and session subscriptions, over WebSocket and SSE")
FRAMES = Counter("hr_push_frames_total", "Frames sent")
MESSAGES = Counter("hr_push_messages_total", "Messages sent, by kind", ("t",))
BYTES = Counter("hr_push_bytes_total", "Bytes of frames sent, before the socket")
REPLAYS = Counter("hr_push_replays_total", "Starts of a task's delivery, by mode", ("mode",))
DISCONNECTS = Counter("hr_push_disconnects_total", "Closes by the server, by code", ("code",))
GAPS = Counter("hr_push_gaps_total", "Ranges that did not join; stays 0 unless something is broken")
REPLIES = Counter("hr_replies_total", "Replies written to streams, by outcome", ("outcome",))
SETTLED = Counter("hr_settled_total", "Reservations of tokens that were settled with what their tasks used")
WEBHOOKS = Counter("hr_webhooks_total", "Tries of webhooks, by outcome", ("outcome",))
WEBHOOK_DELAY = Histogram(
    "hr_webhook_delay_seconds",
    "From an event to the 2xx of its receiver",
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60, 600, 3600, 86_400),
)
WEBHOOKS_WAITING = Gauge("hr_webhooks_waiting", "Deliveries that wait for their next try, of all replicas")
