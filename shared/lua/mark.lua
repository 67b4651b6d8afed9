#!lua flags=allow-oom
-- mark: write something, so that the WAIT or WAITAOF behind it on this connection waits for all that was written before it.
-- KEYS     mark
-- ARGV     kept (ms)
-- RETURNS  'ok'
-- INVARIANT the server waits for the last write of a connection: without one of its own, a repeat of what another connection
--           wrote, which changes nothing, would be confirmed at once.
local mark = KEYS[1]
local kept_ms = ARGV[1]

redis.call('SET', mark, '', 'PX', kept_ms)
return 'ok'
