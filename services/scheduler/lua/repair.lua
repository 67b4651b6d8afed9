#!lua flags=allow-oom
-- repair: put back unfinished tasks that are nowhere, which only lost data or a foreign hand can bring about.
-- KEYS     expiry, leases
-- ARGV     base of the shard's keys, results kept (ms), log kept (ms), then per task: id, the epoch that it was astray with
--          at a look some leases ago ('' = this is the first look)
-- RETURNS  per task: 'well' (or ended meanwhile) | the epoch that it is astray with (look again later) | 'repaired'
--          | 'wrongtype <key>'
-- INVARIANT nothing is done at the first look: a task on its way between two places is astray for a moment.
-- The task keys are computed: they share the shard's hash tag.
local expiry, leases = KEYS[1], KEYS[2]
local base, kept_ms, log_kept_ms = ARGV[1], ARGV[2], ARGV[3]

-- USES clock, types, shard, terms, fair, flight, task

local function is_astray(task)
  if task.state == 'pending' then
    return not is_led(task) and not redis.call('ZSCORE', backlog_of(task.lane, task.tenant), task.id)
      and not redis.call('ZSCORE', base .. 'later', task.id)
  end
  return task.state ~= 'processing' or not redis.call('ZSCORE', leases, task.id)
end

local function look(id, before)
  if not redis.call('ZSCORE', expiry, id) then return 'well' end
  local task = find(id)
  if not task then
    redis.call('ZREM', expiry, id)
    return 'repaired'
  end
  if not is_astray(task) then return 'well' end
  if before ~= task.epoch then return task.epoch end
  local wrong = foreign(task)
  if wrong then return 'wrongtype ' .. wrong end
  if task.state == 'pending' and (task.follows or redis.call('HEXISTS', task.key, 'owes') == 1) then
    arrive(id)  -- nobody leads it, or its quota was not asked for: it asks again
  elseif task.state == 'pending' then
    requeue(task, 'astray')
  elseif task.state == 'processing' then
    redis.call('ZADD', leases, now_ms, id)
  else
    redis.call('ZREM', expiry, id)
  end
  return 'repaired'
end

check_shard()
local verdicts = {}
for item = 0, (#ARGV - 3) / 2 - 1 do
  verdicts[#verdicts + 1] = look(unpack(ARGV, 4 + item * 2, 5 + item * 2))
end
return verdicts
