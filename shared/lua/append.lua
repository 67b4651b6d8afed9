#!lua flags=allow-oom
-- append: add an entry to a stream that drains or reports what the system holds already, so also when memory is full.
-- KEYS     stream
-- ARGV     most entries that are kept, about (0: all), then per field: name, value
-- RETURNS  id of the entry
-- INVARIANT what was accepted gets its reply or its dead letter; only new tasks are refused when memory is full.
local stream = KEYS[1]
local most_kept = tonumber(ARGV[1])

if most_kept > 0 then
  return redis.call('XADD', stream, 'MAXLEN', '~', most_kept, '*', unpack(ARGV, 2))
end
return redis.call('XADD', stream, '*', unpack(ARGV, 2))
