#!lua
-- submit: make tasks, once each. The only script that is refused when memory is full.
-- KEYS     in, backlog of each lane (3), then per task: task, tenant index, session index, bus
-- ARGV     backlog limit (tasks), index length (tasks), indexes kept (ms),
--          then per task: id, lane, session, reply_to, spec, body, pending event
-- RETURNS  per task: 'new' | state of the task that has this id already | 'full' | 'wrongtype <key>'
-- INVARIANT a task's hash and its entry in `in` are made together; a repeat makes neither.
local arrivals = KEYS[1]
local backlog_limit, index_length, index_kept_ms = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]

local function is(key, wanted)
  local kind = redis.call('TYPE', key).ok
  return kind == 'none' or kind == wanted
end

local function remember(index, id, now_ms)
  redis.call('ZADD', index, now_ms, id)
  redis.call('ZREMRANGEBYRANK', index, 0, -index_length - 1)
  redis.call('PEXPIRE', index, index_kept_ms)
end

local broken
for _, check in ipairs({{1, 'stream'}, {2, 'zset'}, {3, 'zset'}, {4, 'zset'}}) do
  if not is(KEYS[check[1]], check[2]) then broken = 'wrongtype ' .. KEYS[check[1]] end
end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local room = 0
if not broken then
  room = backlog_limit - redis.call('XLEN', arrivals)
  for lane = 2, 4 do room = room - redis.call('ZCARD', KEYS[lane]) end
end

local function submit(task, tenant_index, session_index, bus, id, lane, session, reply_to, spec, body, pending)
  local kind = redis.call('TYPE', task).ok
  if kind == 'hash' then return redis.call('HGET', task, 'state') or 'wrongtype ' .. task end
  if kind ~= 'none' then return 'wrongtype ' .. task end
  if not is(tenant_index, 'zset') then return 'wrongtype ' .. tenant_index end
  if not is(session_index, 'zset') then return 'wrongtype ' .. session_index end
  if not is(bus, 'stream') then return 'wrongtype ' .. bus end
  if room <= 0 then return 'full' end
  room = room - 1
  redis.call('HSET', task, 'state', 'pending', 'lane', lane, 'session', session, 'reply_to', reply_to, 'epoch', 0,
    'created_at_ms', now_ms, 'spec', spec, 'body', body)
  redis.call('XADD', arrivals, '*', 't', id)
  remember(tenant_index, id, now_ms)
  if session ~= '' then
    remember(session_index, id, now_ms)
    redis.call('XADD', bus, 'MINID', '~', now_ms - 120000, '*', 't', id, 's', session, 'e', pending)
  end
  return 'new'
end

local verdicts = {}
for item = 0, (#ARGV - 3) / 7 - 1 do
  local key, arg = 5 + item * 4, 4 + item * 7
  verdicts[#verdicts + 1] = broken or submit(KEYS[key], KEYS[key + 1], KEYS[key + 2], KEYS[key + 3],
    unpack(ARGV, arg, arg + 6))
end
return verdicts
