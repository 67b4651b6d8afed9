#!lua flags=allow-oom
-- attend: the clients of attached tasks still wait.
-- KEYS     attached
-- ARGV     waiter's lease (ms), then per task: id
-- RETURNS  how many of the tasks are still attached
-- INVARIANT a task that has ended is not attached again.
local attached, lease_ms = KEYS[1], tonumber(ARGV[1])

-- USES clock

local still = 0
for item = 2, #ARGV do
  if redis.call('ZSCORE', attached, ARGV[item]) then
    redis.call('ZADD', attached, now_ms + lease_ms, ARGV[item])
    still = still + 1
  end
end
return still
