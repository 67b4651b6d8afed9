#!lua flags=allow-oom
-- due: what time itself does. Deadlines pass, waiters have gone, retries are due.
-- KEYS     expiry, attached, later
-- ARGV     base of the shard's keys, results kept (ms), log kept (ms), most tasks of each kind,
--          0 = not the waiters: nobody could renew their leases of late
-- RETURNS  {tasks expired, tasks cancelled, running tasks whose workers were told to stop, tasks that arrive now}
-- INVARIANT a waiting task ends here; a running one is ended by its worker, or when its lease is lost.
-- The task keys are computed: they are known only here, and share the shard's hash tag.
local expiry, attached, later = KEYS[1], KEYS[2], KEYS[3]
local base, kept_ms, log_kept_ms, most, waiters = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5] ~= '0'

-- USES clock, types, shard, terms, fair, flight, task

local AGAIN_MS = 10000

local function due(index) return redis.call('ZRANGEBYSCORE', index, '-inf', now_ms, 'LIMIT', 0, most) end

-- `index` forgets the task, or asks again in a while if it cannot end now.
local function stop_due(index, word)
  local ended, told = 0, 0
  for _, id in ipairs(due(index)) do
    local task = find(id)
    if task and task.state == 'pending' and not foreign(task) then
      end_as(task, word)
      ended = ended + 1
    elseif task and (task.state == 'processing' or task.state == 'pending') then
      if task.state == 'processing' then ask_to_stop(task, word) end
      redis.call('ZADD', index, now_ms + AGAIN_MS, id)
      told = told + 1
    else
      redis.call('ZREM', index, id)
    end
  end
  return ended, told
end

check_shard()
local expired, told_expired = stop_due(expiry, 'expired')
local cancelled, told_cancelled = 0, 0
if waiters then cancelled, told_cancelled = stop_due(attached, 'cancelled') end
local back = 0
for _, id in ipairs(due(later)) do
  redis.call('ZREM', later, id)
  local task = find(id)
  if task and task.state == 'pending' then
    arrive(id)
    back = back + 1
  end
end
if redis.call('EXISTS', expiry) == 0 then forget_shares() end
return {expired, cancelled, told_expired + told_cancelled, back}
