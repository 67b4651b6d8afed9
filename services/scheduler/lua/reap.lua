#!lua flags=allow-oom
-- reap: take tasks back from workers that were silent for longer than their lease.
-- KEYS     leases, workers, in, backlog of each lane (3)
-- ARGV     base of the shard's keys, most tasks of this call, age at which a worker's beat is too old (ms)
-- RETURNS  {running tasks taken back, tasks taken back that had not started, workers removed}
-- INVARIANT a task taken back has a higher epoch, so whoever held it can change nothing afterwards.
-- The task and work keys are computed: they are known only here, and share the shard's hash tag.
local leases, workers_key, arrivals = KEYS[1], KEYS[2], KEYS[3]
local backlogs = {interactive = KEYS[4], normal = KEYS[5], batch = KEYS[6]}
local base, most, too_old_ms = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)

local function requeue(id, crashes)
  local task = base .. 'task:' .. id
  local lane, created_at_ms = unpack(redis.call('HMGET', task, 'lane', 'created_at_ms'))
  if not lane then return end
  redis.call('HINCRBY', task, 'epoch', 1)
  redis.call('HINCRBY', task, 'crashes', crashes)
  redis.call('HSET', task, 'state', 'pending')
  redis.call('HDEL', task, 'owner', 'worker')
  redis.call('ZADD', backlogs[lane], 'NX', created_at_ms, id)
end

redis.call('XLEN', arrivals)  -- raises before the first write if a key holds another type; so do the next lines
for _, backlog in pairs(backlogs) do redis.call('ZCARD', backlog) end
local announced = redis.call('HGETALL', workers_key)
local lost = redis.call('ZRANGEBYSCORE', leases, '-inf', now_ms, 'LIMIT', 0, most)
for _, id in ipairs(lost) do
  redis.call('ZREM', leases, id)
  if redis.pcall('HGET', base .. 'task:' .. id, 'state') == 'processing' then requeue(id, 1) end
end

local unstarted, removed = 0, 0
for i = 1, #announced, 2 do
  local beat_ms = string.match(announced[i + 1], '^(%d+) ')
  if now_ms - (beat_ms or 0) > too_old_ms then
    local stream = base .. 'work:' .. announced[i]
    for _, entry in ipairs(redis.call('XRANGE', stream, '-', '+', 'COUNT', most)) do
      local id, epoch = entry[2][2], entry[2][4]
      local state, current = unpack(redis.pcall('HMGET', base .. 'task:' .. id, 'state', 'epoch'))
      if state == 'pending' and current == epoch then
        requeue(id, 0)
        unstarted = unstarted + 1
      end
      if not (state == 'processing' and current == epoch) then redis.call('XDEL', stream, entry[1]) end
    end
    if redis.call('XLEN', stream) == 0 then
      redis.call('DEL', stream)
      redis.call('HDEL', workers_key, announced[i])
      removed = removed + 1
    end
  end
end
if #lost + unstarted > 0 then redis.call('XADD', arrivals, '*', 'wake', 'reap') end
return {#lost, unstarted, removed}
