#!lua flags=allow-oom
-- batch_make: a batch begins, once. Some hundred bytes, so also when memory is full: its items are refused then, and wait.
-- KEYS     state
-- ARGV     completion window (ms), fingerprint of what was asked, then per field: name, value
-- RETURNS  'new' | 'known' (the same was asked before) | 'conflict' (the id stands for something else) | 'wrongtype <key>'
-- INVARIANT an id stands for one batch. Its deadline is Redis' own time and the window.
local state, window_ms, fingerprint = KEYS[1], tonumber(ARGV[1]), ARGV[2]

-- USES clock, types

if not is(state, 'hash') then return 'wrongtype ' .. state end
local known = redis.call('HGET', state, 'fingerprint')
if known then return known == fingerprint and 'known' or 'conflict' end
redis.call('HSET', state, 'status', 'validating', 'fingerprint', fingerprint, 'created_at_ms', now_ms,
  'expires_at_ms', now_ms + window_ms, 'epoch', 0, 'offset', 0, unpack(ARGV, 3))
return 'new'
