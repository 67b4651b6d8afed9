#!lua flags=allow-oom
-- discard: remove what a task that has ended was asked and answered.
-- KEYS     task, log
-- ARGV     none
-- RETURNS  'discarded' (now or before) | 'unknown' | the state of a task that has not ended | 'wrongtype <key>'
-- INVARIANT nothing of a task that may still run goes. That it was, and what it was charged, stays until it expires.
local task, log = KEYS[1], KEYS[2]
local ENDED = {completed = true, failed = true, cancelled = true, expired = true}

-- USES types

if not is(task, 'hash') then return 'wrongtype ' .. task end
if not is(log, 'stream') then return 'wrongtype ' .. log end
local state = redis.call('HGET', task, 'state')
if not state or redis.call('HEXISTS', task, 'spec') == 0 then return 'unknown' end
if not ENDED[state] then return state end
redis.call('HSET', task, 'discarded', 1)
redis.call('HDEL', task, 'body', 'result', 'finished')
redis.call('DEL', log)
return 'discarded'
