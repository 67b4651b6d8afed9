#!lua flags=allow-oom
-- promote: have deliveries tried whose time has come.
-- KEYS     deliveries, later
-- ARGV     most (deliveries)
-- RETURNS  {'ok', deliveries that are tried now, those that still wait} | {'wrongtype <key>'}
-- INVARIANT each is put back once, whichever of the replicas asks.
local deliveries, later = KEYS[1], KEYS[2]
local most = ARGV[1]

-- USES clock, types

if not is(deliveries, 'stream') then return {'wrongtype ' .. deliveries} end
if not is(later, 'zset') then return {'wrongtype ' .. later} end
local due = redis.call('ZRANGEBYSCORE', later, '-inf', now_ms, 'LIMIT', 0, most)
for _, delivery in ipairs(due) do
  redis.call('XADD', deliveries, '*', 'delivery', delivery)
  redis.call('ZREM', later, delivery)
end
return {'ok', #due, redis.call('ZCARD', later)}
