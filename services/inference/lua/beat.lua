#!lua flags=allow-oom
-- beat: a worker is alive; its announcement and the leases of its running tasks are renewed. The first beat registers it.
-- KEYS     workers, leases, work, in, then per running task: task
-- ARGV     worker, nonce, lease (ms), slots, of these for normal and batch, of these for batch, announcement,
--          then per running task: id, epoch
-- RETURNS  per task that must be stopped: its id, then why: 'fenced' (it is another's) | 'cancelled' | 'expired'
-- INVARIANT only the holder of the fence renews a lease. A task that is to be stopped is held until its worker has ended it.
local workers, leases, work, arrivals = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local worker, nonce, lease_ms, slots, normal, batch, announcement = unpack(ARGV, 1, 7)

-- USES clock

redis.call('ZCARD', leases)  -- raises before the first write if a key holds another type; so do the next lines
redis.call('XLEN', work)
redis.call('XLEN', arrivals)
local before = redis.call('HGET', workers, worker)
local room = slots .. ' ' .. normal .. ' ' .. batch
redis.call('HSET', workers, worker, now_ms .. ' ' .. room .. ' ' .. announcement)
if redis.call('EXISTS', work) == 0 or #redis.call('XINFO', 'GROUPS', work) == 0 then
  redis.call('XGROUP', 'CREATE', work, 'workers', '0', 'MKSTREAM')
end
if not before or string.match(before, '^%d+ (%d+ %d+ %d+) ') ~= room then
  redis.call('XADD', arrivals, '*', 'wake', 'slots')
end

local stopped = {}
for item = 0, (#ARGV - 7) / 2 - 1 do
  local id, epoch = unpack(ARGV, 8 + item * 2, 9 + item * 2)
  local state, current, owner, stop = unpack(redis.pcall('HMGET', KEYS[5 + item], 'state', 'epoch', 'owner', 'stop'))
  local mine = state == 'processing' and current == epoch and owner == nonce
  if mine then redis.call('ZADD', leases, now_ms + lease_ms, id) end
  if stop or not mine then
    stopped[#stopped + 1] = id
    stopped[#stopped + 1] = mine and stop or 'fenced'
  end
end
return stopped
