#!lua flags=allow-oom
-- beat: a worker is alive; its announcement and the leases of its running tasks are renewed. The first beat registers it.
-- KEYS     workers, leases, work, in, then per running task: task
-- ARGV     worker, nonce, lease (ms), slots, announcement, then per running task: id, epoch
-- RETURNS  ids of the tasks that this worker no longer holds, to be aborted
-- INVARIANT only the holder of the fence renews a lease.
local workers, leases, work, arrivals = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local worker, nonce, lease_ms, slots, announcement = unpack(ARGV, 1, 5)

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZCARD', leases)  -- raises before the first write if a key holds another type; so do the next lines
redis.call('XLEN', work)
redis.call('XLEN', arrivals)
local before = redis.call('HGET', workers, worker)
redis.call('HSET', workers, worker, now_ms .. ' ' .. slots .. ' ' .. announcement)
if redis.call('EXISTS', work) == 0 then redis.call('XGROUP', 'CREATE', work, 'workers', '0', 'MKSTREAM') end
if not before or string.match(before, '^%d+ (%d+) ') ~= slots then
  redis.call('XADD', arrivals, '*', 'wake', 'slots')
end

local lost = {}
for item = 0, (#ARGV - 5) / 2 - 1 do
  local id, epoch = unpack(ARGV, 6 + item * 2, 7 + item * 2)
  local state, current, owner = unpack(redis.pcall('HMGET', KEYS[5 + item], 'state', 'epoch', 'owner'))
  if state == 'processing' and current == epoch and owner == nonce then
    redis.call('ZADD', leases, now_ms + lease_ms, id)
  else
    lost[#lost + 1] = id
  end
end
return lost
