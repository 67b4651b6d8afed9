#!lua flags=allow-oom
-- start: a worker takes the tasks that were handed to it.
-- KEYS     leases, work, then per task: task, log, bus
-- ARGV     worker, nonce, lease (ms), then per task: id, epoch, entry id
-- RETURNS  per task: {'run', attempt, spec, body, waited (ms)} | {'stale'} (not this worker's any more; its entry is cleared)
--          | {'wrongtype', key}
-- INVARIANT one nonce holds an epoch. A repeat by the same nonce gets the same answer, until output was published: then the
--          worker has lost the run, and what it makes now is another attempt.
local leases, work = KEYS[1], KEYS[2]
local worker, nonce, lease_ms = ARGV[1], ARGV[2], tonumber(ARGV[3])

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)

local function is(key, wanted)
  local kind = redis.call('TYPE', key).ok
  return kind == 'none' or kind == wanted
end

local function announce(log, bus, id, session, event, replayable)
  local entry = redis.call('XADD', bus, 'MINID', '~', now_ms - 120000, '*', 't', id, 's', session, 'e', event)
  if replayable then redis.call('XADD', log, entry, 'e', event) end
end

local function start(task, log, bus, id, epoch, entry)
  if not is(task, 'hash') then return {'wrongtype', task} end
  if not is(log, 'stream') then return {'wrongtype', log} end
  if not is(bus, 'stream') then return {'wrongtype', bus} end
  local state, current, owner, attempts, last, session, spec, body, created_at_ms = unpack(redis.call('HMGET', task,
    'state', 'epoch', 'owner', 'attempts', 'last', 'session', 'spec', 'body', 'created_at_ms'))
  local mine, published = state == 'processing' and current == epoch and owner == nonce, (tonumber(last) or 0) > 0
  if mine and not published then
    return {'run', tonumber(attempts), spec, body, now_ms - created_at_ms}
  elseif not mine and (state ~= 'pending' or current ~= epoch) then
    redis.call('XACK', work, 'workers', entry)
    redis.call('XDEL', work, entry)
    return {'stale'}
  end
  local attempt = (tonumber(attempts) or 0) + 1
  redis.call('HSET', task, 'state', 'processing', 'owner', nonce, 'worker', worker, 'attempts', attempt, 'last', 0,
    'started_at_ms', now_ms)
  redis.call('ZADD', leases, now_ms + lease_ms, id)
  if published then
    announce(log, bus, id, session, '{"type":"reset.v1","attempt":' .. attempt .. ',"why":"retry"}', true)
  else
    local event = '{"type":"started.v1","attempt":' .. attempt .. ',"worker":"' .. worker .. '"}'
    announce(log, bus, id, session, event, false)
  end
  return {'run', attempt, spec, body, now_ms - created_at_ms}
end

redis.call('ZCARD', leases)  -- raises before the first write if a key holds another type; so does the next line
redis.call('XLEN', work)
local verdicts = {}
for item = 0, (#ARGV - 3) / 3 - 1 do
  local key, arg = 3 + item * 3, 4 + item * 3
  verdicts[#verdicts + 1] = start(KEYS[key], KEYS[key + 1], KEYS[key + 2], unpack(ARGV, arg, arg + 2))
end
return verdicts
