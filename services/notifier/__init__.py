"""The notifier: tokens and completions out, to browsers over WebSocket and SSE, to other systems over reply streams.

Reads   {shard}:bus:<p> (a group of its own), {shard}:log:<task>, the task's hash, {shard}:outbox (group `outbox`)
Writes  hr:reply:<name>, {shard}:dead
Owns    nothing: a client comes back to any replica with its cursor, and misses nothing
"""
