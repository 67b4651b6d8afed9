"""The notifier: tokens and completions out, to browsers over WebSocket and SSE, to other systems over streams and webhooks.

Reads   {shard}:bus:<p> (a group of its own), {shard}:log:<task>, the task's hash, {shard}:outbox (group `outbox`),
        hr:{webhooks} (group `webhooks`)
Writes  hr:reply:<name>, {shard}:dead, hr:{webhooks} and what goes with it, requests to webhooks
Owns    nothing: a client comes back to any replica with its cursor, and misses nothing
"""
