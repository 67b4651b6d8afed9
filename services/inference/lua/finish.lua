#!lua flags=allow-oom
-- finish: end tasks with their last chunks, their result and all that follows from it, in one step.
-- KEYS     work, in, turns of each lane (3), then per task: task, log, bus
-- ARGV     base of the shard's keys, results kept (ms), log kept (ms), nonce, then per task: id, epoch, entry id, first, last,
--          chunks event ('' = no tail), journal, tokens of prompt and answer (0 = not counted), state, HTTP status, result, finished event
-- RETURNS  per task: 'ok' (now or before) | 'fenced' | 'gap <last written>' | 'wrongtype <key>'
-- INVARIANT one terminal transition a task. A slot is free again when its work entry is gone, and that is here.
local work, arrivals, lanes = KEYS[1], KEYS[2], {KEYS[3], KEYS[4], KEYS[5]}
local base, kept_ms, log_kept_ms, nonce = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

-- USES clock, types, shard, terms, fair, flight, task, entries, tail

local function finish(key, id, epoch, entry, first, last, chunks, journal, tokens, state, status, result, finished)
  local task = find(id)
  if not task and not is(key, 'hash') then return 'wrongtype ' .. key end
  if not task or task.epoch ~= epoch or task.owner ~= nonce then return fence_off(task, epoch, entry) end
  if task.state ~= 'processing' then
    clear(work, entry, task)
    return 'ok'
  end
  local wrong = foreign(task)
  if wrong then return 'wrongtype ' .. wrong end
  if not add_tail(task, first, last, chunks, journal) then return 'gap ' .. task.last end
  if tonumber(tokens) == 0 and (state == 'completed' or task.last > 0) then tokens = estimated(task) end
  end_task(task, state, status, result, finished, tokens)
  clear(work, entry, task)
  return 'ok'
end

check_shard()
redis.call('XLEN', work)
local none_arriving, some_waiting = redis.call('XLEN', arrivals) == 0, false
local verdicts = {}
for item = 0, (#ARGV - 4) / 12 - 1 do
  local arg = 5 + item * 12
  verdicts[#verdicts + 1] = finish(KEYS[6 + item * 3], unpack(ARGV, arg, arg + 11))
end
for _, lane in ipairs(lanes) do some_waiting = redis.call('EXISTS', lane) == 1 or some_waiting end
if none_arriving and some_waiting then redis.call('XADD', arrivals, '*', 'wake', 'slots') end
return verdicts
