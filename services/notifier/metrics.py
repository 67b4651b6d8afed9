"""What an operator asks the notifier: who listens, how much goes out, who was cut off, and what could not be replied."""

from prometheus_client import Counter, Gauge

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
