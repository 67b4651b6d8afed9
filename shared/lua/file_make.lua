#!lua flags=allow-oom
-- file_make: a file is there, with its first part if it has one. Some hundred bytes, so also when memory is full.
-- KEYS     record, parts
-- ARGV     kept (ms), key of the part in the object store ('': it has none yet), then per field: name, value
-- RETURNS  'new' | 'known' (it stays as it is) | 'wrongtype <key>'
-- INVARIANT a file appears together with its content; created_at_ms and expires_at_ms are Redis' own time.
local record, parts = KEYS[1], KEYS[2]
local kept_ms, part = tonumber(ARGV[1]), ARGV[2]

-- USES clock, types

for key, wanted in pairs({[record] = 'hash', [parts] = 'zset'}) do
  if not is(key, wanted) then return 'wrongtype ' .. key end
end
if redis.call('EXISTS', record) == 1 then return 'known' end
redis.call('HSET', record, 'created_at_ms', now_ms, 'expires_at_ms', now_ms + kept_ms, unpack(ARGV, 3))
if part ~= '' then redis.call('ZADD', parts, 0, part) end
return 'new'
