#!lua flags=allow-oom
-- release: a worker gives up running tasks with all they have made, to be tried again, or to end if that was the last try.
-- KEYS     work, in, then per task: task, log, bus
-- ARGV     base of the shard's keys, results kept (ms), log kept (ms), nonce, failures after which a task fails, crashes at
--          which it is quarantined, first pause (ms), longest pause (ms), then per task: id, epoch, entry id, first, last,
--          chunks event ('' = no tail), journal, tokens of prompt and answer, charge ('failure' | 'final' | 'crash' | 'none'), why, share of the pause (per mille),
--          HTTP status, result, finished event (for charge 'failure', should this have been the last try, and 'final', after
--          which no other is made), least pause (ms)
-- RETURNS  per task: 'again' (now) | 'later' (after a pause, full jitter) | 'failed' | 'quarantined' | 'cancelled' | 'expired'
--          | 'fenced' (another's, or released before) | 'gap <last written>' | 'wrongtype <key>'
-- INVARIANT what was asked to stop goes first: it ends, and is not tried again.
local work, arrivals = KEYS[1], KEYS[2]
local base, kept_ms, log_kept_ms, nonce = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local failure_limit, crash_limit = tonumber(ARGV[5]), tonumber(ARGV[6])
local first_pause_ms, longest_pause_ms = tonumber(ARGV[7]), tonumber(ARGV[8])

-- USES clock, types, shard, terms, fair, flight, task, entries, tail

local function fail(task, final, why, share, status, result, finished, least_ms, tokens)
  task.failures = task.failures + 1
  if final or task.failures > failure_limit then
    remember_attempt(task, why)
    redis.call('HSET', task.key, 'failures', task.failures)
    if tonumber(tokens) == 0 and task.last > 0 then tokens = estimated(task) end
    end_task(task, 'failed', status, result, finished, tokens)
    bury(task, why, 'It failed ' .. task.failures .. ' times; the last error is the result.')
    return 'failed'
  end
  local pause_ms = math.min(longest_pause_ms, first_pause_ms * 2 ^ (task.failures - 1)) * share / 1000
  requeue(task, why, math.floor(now_ms + least_ms + pause_ms))
  return 'later'
end

local function give_up(task, tokens, charge, why, share, status, result, finished, least_ms)
  if task.stop then
    end_as(task, task.stop, tokens)
    return task.stop
  elseif charge == 'failure' or charge == 'final' then
    return fail(task, charge == 'final', why, share, status, result, finished, least_ms, tokens)
  elseif charge == 'crash' then
    return survive(task, crash_limit, why)
  end
  requeue(task, why)
  return 'again'
end

local function release(key, id, epoch, entry, first, last, chunks, journal, ...)
  local task = find(id)
  if not task and not is(key, 'hash') then return 'wrongtype ' .. key end
  if not task or task.state ~= 'processing' or task.epoch ~= epoch or task.owner ~= nonce then
    return fence_off(task, epoch, entry)
  end
  local wrong = foreign(task)
  if wrong then return 'wrongtype ' .. wrong end
  if not add_tail(task, first, last, chunks, journal) then return 'gap ' .. task.last end
  local verdict = give_up(task, ...)
  clear(work, entry, task)
  return verdict
end

check_shard()
redis.call('XLEN', work)
local verdicts, moved = {}, false
for item = 0, (#ARGV - 8) / 15 - 1 do
  local arg = 9 + item * 15
  local verdict = release(KEYS[3 + item * 3], unpack(ARGV, arg, arg + 14))
  verdicts[#verdicts + 1], moved = verdict, moved or not string.find(verdict, '^wrongtype')
end
if moved then redis.call('XADD', arrivals, '*', 'wake', 'release') end
return verdicts
