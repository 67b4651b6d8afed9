#!lua flags=allow-oom
-- cancel: end waiting tasks, and have running ones ended by their workers.
-- KEYS     task of each
-- ARGV     base of the shard's keys, results kept (ms), log kept (ms), note of a task to come kept (ms), then per task: id
-- RETURNS  per task: 'cancelled' (now or before) | 'processing' (its worker has been told) | another terminal state
--          | 'unknown' (noted: submit will obey) | 'wrongtype <key>'
-- INVARIANT a task that has ended stays as it ended.
local tasks = KEYS
local base, kept_ms, log_kept_ms, note_kept_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

-- USES clock, types, shard, terms, fair, flight, task

local function cancel(key, id)
  local kind = redis.call('TYPE', key).ok
  if kind == 'none' then
    redis.call('HSET', key, 'state', 'cancelled', 'tombstone', 1)
    redis.call('PEXPIRE', key, note_kept_ms)
    return 'unknown'
  end
  local task = find(id)
  if not task then return kind == 'hash' and redis.call('HGET', key, 'tombstone') and 'unknown' or 'wrongtype ' .. key end
  if task.state == 'processing' then
    ask_to_stop(task, 'cancelled')
  elseif task.state == 'pending' then
    local wrong = foreign(task)
    if wrong then return 'wrongtype ' .. wrong end
    end_as(task, 'cancelled')
    return 'cancelled'
  end
  return task.state
end

check_shard()
local verdicts = {}
for item = 5, #ARGV do
  verdicts[#verdicts + 1] = cancel(tasks[item - 4], ARGV[item])
end
return verdicts
