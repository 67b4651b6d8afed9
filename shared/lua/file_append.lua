#!lua flags=allow-oom
-- file_append: one more object is part of a file. What is filed lies in the store already, so also when memory is full.
-- KEYS     record, parts
-- ARGV     key of the part in the object store, bytes, lines
-- RETURNS  'ok' (now or before) | 'unknown' (there is no such file) | 'wrongtype <key>'
-- INVARIANT the score of a part is the place of its first byte in the file; an object is part of a file once. Empty ones are none:
--           two parts at one place would have no order.
local record, parts = KEYS[1], KEYS[2]
local part, bytes, lines = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])

-- USES types

for key, wanted in pairs({[record] = 'hash', [parts] = 'zset'}) do
  if not is(key, wanted) then return 'wrongtype ' .. key end
end
local size = redis.call('HGET', record, 'bytes')
if not size then return 'unknown' end
if bytes > 0 and not redis.call('ZSCORE', parts, part) then
  redis.call('ZADD', parts, size, part)
  redis.call('HINCRBY', record, 'bytes', bytes)
  redis.call('HINCRBY', record, 'lines', lines)
end
return 'ok'
