#!lua
-- submit: make tasks, once each. The only script that is refused when memory is full, with reserve.
-- KEYS     in, backlog of each lane (3), then per task: task, tenant index, session index, bus
-- ARGV     base of the shard's keys, results kept (ms), log kept (ms), backlog limit (tasks), index length (tasks),
--          waiter's lease (ms), then per task: id, lane, session, reply_to, attached ('1' or ''), expires in (ms), spec, body,
--          pending event
-- RETURNS  per task: 'new' | state of the task that has this id already | 'full' | 'wrongtype <key>'
-- INVARIANT a task's hash, its entry in `in` and its deadline are made together; a repeat makes none. A task that was
--          cancelled before it came is made, and ends in the same step.
local arrivals, lanes = KEYS[1], {KEYS[2], KEYS[3], KEYS[4]}
local base, kept_ms, log_kept_ms = ARGV[1], ARGV[2], ARGV[3]
local backlog_limit, index_length, attached_ms = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])

-- USES clock, types, task

local function remember(index, id)
  redis.call('ZADD', index, now_ms, id)
  redis.call('ZREMRANGEBYRANK', index, 0, -index_length - 1)
  redis.call('PEXPIRE', index, kept_ms)
end

local function broken_shard()
  if not is(arrivals, 'stream') then return 'wrongtype ' .. arrivals end
  for _, key in ipairs({lanes[1], lanes[2], lanes[3], base .. 'expiry', base .. 'attached'}) do
    if not is(key, 'zset') then return 'wrongtype ' .. key end
  end
end
local broken, room = broken_shard(), 0
if not broken then
  room = backlog_limit - redis.call('XLEN', arrivals)
  for _, lane in ipairs(lanes) do room = room - redis.call('ZCARD', lane) end
end

-- What keeps it from being made; true as the second answer: it was cancelled before it came.
local function refusal(id, reply_to, task, tenant_index, session_index, bus)
  local kind, cancelled = redis.call('TYPE', task).ok, false
  if kind == 'hash' then
    local state, tombstone = unpack(redis.call('HMGET', task, 'state', 'tombstone'))
    if not tombstone then return state or 'wrongtype ' .. task end
    cancelled = true
  elseif kind ~= 'none' then
    return 'wrongtype ' .. task
  end
  for key, wanted in pairs({[tenant_index] = 'zset', [session_index] = 'zset', [bus] = 'stream',
    [base .. 'log:' .. id] = 'stream', [reply_to ~= '' and base .. 'outbox' or bus] = 'stream'}) do
    if not is(key, wanted) then return 'wrongtype ' .. key end
  end
  return broken or (not cancelled and room <= 0 and 'full'), cancelled
end

local function submit(keys, id, lane, session, reply_to, attached, expires_ms, spec, body, pending)
  local task, tenant_index, session_index, bus = unpack(keys)
  local refused, cancelled = refusal(id, reply_to, task, tenant_index, session_index, bus)
  if refused then return refused end
  room = room - 1
  local deadline_ms = now_ms + tonumber(expires_ms)
  redis.call('DEL', task)
  redis.call('HSET', task, 'state', 'pending', 'lane', lane, 'session', session, 'reply_to', reply_to, 'epoch', 0,
    'created_at_ms', now_ms, 'deadline_ms', deadline_ms, 'spec', spec, 'body', body)
  remember(tenant_index, id)
  if session ~= '' then
    remember(session_index, id)
    redis.call('XADD', bus, 'MINID', '~', now_ms - 120000, '*', 't', id, 's', session, 'e', pending)
  end
  if cancelled then
    end_as(find(id), 'cancelled')
    return 'cancelled'
  end
  redis.call('XADD', arrivals, '*', 't', id)
  redis.call('ZADD', base .. 'expiry', deadline_ms, id)
  if attached ~= '' then redis.call('ZADD', base .. 'attached', now_ms + attached_ms, id) end
  return 'new'
end

local verdicts = {}
for item = 0, (#ARGV - 6) / 9 - 1 do
  local key, arg = 5 + item * 4, 7 + item * 9
  verdicts[#verdicts + 1] = submit({unpack(KEYS, key, key + 3)}, unpack(ARGV, arg, arg + 8))
end
return verdicts
