#!lua flags=allow-oom
-- start: a worker takes the tasks that were handed to it.
-- KEYS     leases, work, then per task: task, log, bus
-- ARGV     base of the shard's keys, results kept (ms), log kept (ms), worker, nonce, lease (ms),
--          then per task: id, epoch, entry id
-- RETURNS  per task: {'run', attempt, spec, body, waited (ms), chunks published by earlier attempts,
--          wait predicted when it came (ms, -1 = none)}
--          | {'stale'} (not this worker's any more, or past its deadline; its entry is cleared) | {'wrongtype', key}
-- INVARIANT one nonce holds an epoch. A repeat by the same nonce gets the same answer, until output was published: then the
--          worker has lost the run, and what it makes now is another attempt.
local leases, work = KEYS[1], KEYS[2]
local base, kept_ms, log_kept_ms = ARGV[1], ARGV[2], ARGV[3]
local worker, nonce, lease_ms = ARGV[4], ARGV[5], tonumber(ARGV[6])

-- USES clock, types, shard, terms, fair, flight, task, entries

local function stale(entry)
  clear(work, entry)
  return {'stale'}
end

local function start(keys, id, epoch, entry)
  local key, log, bus = unpack(keys)
  local task = find(id)
  if not task and not is(key, 'hash') then return {'wrongtype', key} end
  if not task or task.epoch ~= epoch then return stale(entry) end
  local wrong = foreign(task)
  if wrong then return {'wrongtype', wrong} end
  local from, spec, body, wait_ms = unpack(redis.call('HMGET', key, 'from', 'spec', 'body', 'eta_ms'))
  wait_ms = tonumber(wait_ms) or -1
  local mine = task.state == 'processing' and task.owner == nonce
  if mine and task.last == tonumber(from) then
    return {'run', task.attempt, spec, body, now_ms - task.created_at_ms, task.last, task.attempt == 1 and wait_ms or -1}
  elseif not mine and task.state ~= 'pending' then
    return stale(entry)
  elseif task.deadline_ms <= now_ms then
    end_as(task, 'expired')
    return stale(entry)
  end
  if mine then remember_attempt(task, 'lost') end
  local attempt = task.attempt + 1
  redis.call('HSET', key, 'state', 'processing', 'owner', nonce, 'worker', worker, 'attempts', attempt,
    'last', task.last, 'from', task.last, 'started_at_ms', now_ms)
  redis.call('ZADD', leases, now_ms + lease_ms, id)
  local event = '{"type":"started.v1","attempt":' .. attempt .. ',"worker":"' .. worker .. '"}'
  redis.call('XADD', bus, 'MINID', '~', now_ms - 120000, '*', 't', id, 's', task.session, 'e', event)
  return {'run', attempt, spec, body, now_ms - task.created_at_ms, task.last, attempt == 1 and wait_ms or -1}
end

check_shard()
redis.call('XLEN', work)
local verdicts = {}
for item = 0, (#ARGV - 6) / 3 - 1 do
  local key, arg = 3 + item * 3, 7 + item * 3
  verdicts[#verdicts + 1] = start({unpack(KEYS, key, key + 2)}, unpack(ARGV, arg, arg + 2))
end
return verdicts
