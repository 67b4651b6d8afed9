#!lua flags=allow-oom
-- forget: remove consumers of a group that were killed. One that has entries pending stays until they were claimed.
-- KEYS     stream
-- ARGV     group, silence after which a consumer is taken for dead (ms), the consumer that asks
-- RETURNS  consumers removed
-- INVARIANT no pending entry goes with its consumer. A live one that is removed for its silence (Redis 7.0 counts only reads
--           that brought something) is made again by its next read.
local stream = KEYS[1]
local group, silent_ms, own = ARGV[1], tonumber(ARGV[2]), ARGV[3]

local removed = 0
for _, info in ipairs(redis.call('XINFO', 'CONSUMERS', stream, group)) do
  local consumer = {}
  for i = 1, #info, 2 do consumer[info[i]] = info[i + 1] end
  if consumer.name ~= own and consumer.pending == 0 and consumer.idle > silent_ms then
    redis.call('XGROUP', 'DELCONSUMER', stream, group, consumer.name)
    removed = removed + 1
  end
end
return removed
