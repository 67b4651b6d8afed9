#!lua flags=allow-oom
-- put_off: have a delivery tried later, instead of the entry that it came with.
-- KEYS     deliveries, later
-- ARGV     group, entry, delay (ms), delivery
-- RETURNS  'ok' | 'wrongtype <key>'
-- INVARIANT a delivery is in one of the two until it has arrived or is a dead letter; a repeat only moves its time.
local deliveries, later = KEYS[1], KEYS[2]
local group, entry, delay_ms, delivery = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]

-- USES clock, types

if not is(deliveries, 'stream') then return 'wrongtype ' .. deliveries end
if not is(later, 'zset') then return 'wrongtype ' .. later end
redis.call('ZADD', later, now_ms + delay_ms, delivery)
redis.call('XACK', deliveries, group, entry)
redis.call('XDEL', deliveries, entry)
return 'ok'
