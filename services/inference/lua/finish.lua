#!lua flags=allow-oom
-- finish: end tasks with their last chunks, their result and all that follows from it, in one step.
-- KEYS     work, leases, outbox, in, backlog of each lane (3), then per task: task, log, bus
-- ARGV     nonce, result kept (ms), log kept (ms), then per task: id, epoch, entry id, first, last,
--          chunks event ('' = no tail), journal, state, HTTP status, result, finished event
-- RETURNS  per task: 'ok' (now or before) | 'fenced' | 'gap <last written>' | 'wrongtype <key>'
-- INVARIANT one terminal transition a task. A slot is free again when its work entry is gone, and that is here.
local work, leases, outbox, arrivals = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local nonce, result_kept_ms, log_kept_ms = ARGV[1], ARGV[2], ARGV[3]

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)

local function is(key, wanted)
  local kind = redis.call('TYPE', key).ok
  return kind == 'none' or kind == wanted
end

local outbox_broken = not is(outbox, 'stream')

local function clear(entry)
  redis.call('XACK', work, 'workers', entry)
  redis.call('XDEL', work, entry)
end

local function publish(log, bus, id, session, event, journal)
  local entry = redis.call('XADD', bus, 'MINID', '~', now_ms - 120000, '*', 't', id, 's', session, 'e', event)
  if journal ~= '' then
    redis.call('XADD', log, entry, 'e', event, 'j', journal)
  else
    redis.call('XADD', log, entry, 'e', event)
  end
end

local function finish(task, log, bus, id, epoch, entry, first, last, chunks, journal, state, status, result, finished)
  if not is(log, 'stream') then return 'wrongtype ' .. log end
  if not is(bus, 'stream') then return 'wrongtype ' .. bus end
  local found = redis.pcall('HMGET', task, 'state', 'epoch', 'owner', 'last', 'session', 'reply_to')
  if found.err then return 'wrongtype ' .. task end
  local before, current, owner, written, session, reply_to = unpack(found)
  if current ~= epoch or owner ~= nonce then
    clear(entry)
    return 'fenced'
  end
  if before ~= 'processing' then return 'ok' end
  local replies = reply_to and reply_to ~= ''
  if replies and outbox_broken then return 'wrongtype ' .. outbox end
  if chunks ~= '' and tonumber(last) > tonumber(written) then
    if tonumber(first) ~= tonumber(written) + 1 then return 'gap ' .. written end
    publish(log, bus, id, session, chunks, journal)
    if written == '0' then redis.call('HSET', task, 'first_token_at_ms', now_ms) end
  elseif tonumber(last) ~= tonumber(written) then
    return 'gap ' .. written
  end
  publish(log, bus, id, session, finished, '')
  redis.call('HSET', task, 'state', state, 'status', status, 'last', last, 'result', result, 'finished_at_ms', now_ms,
    'finished', finished)
  redis.call('PEXPIRE', task, result_kept_ms)
  redis.call('PEXPIRE', log, log_kept_ms)
  redis.call('ZREM', leases, id)
  if replies then redis.call('XADD', outbox, '*', 't', id) end
  clear(entry)
  return 'ok'
end

redis.call('XLEN', work)  -- raises before the first write if a key holds another type; so do the next lines
redis.call('ZCARD', leases)
local none_arriving, some_waiting = redis.call('XLEN', arrivals) == 0, false
for lane = 5, 7 do some_waiting = redis.call('ZCARD', KEYS[lane]) > 0 or some_waiting end
local verdicts = {}
for item = 0, (#ARGV - 3) / 11 - 1 do
  local key, arg = 8 + item * 3, 4 + item * 11
  verdicts[#verdicts + 1] = finish(KEYS[key], KEYS[key + 1], KEYS[key + 2], unpack(ARGV, arg, arg + 10))
end
if none_arriving and some_waiting then redis.call('XADD', arrivals, '*', 'wake', 'slots') end
return verdicts
