-- task: what all scripts that move a task do alike, so that there is one way to put it back and one way to end it.
-- NEEDS clock, types, shard, fair, flight; base (of the shard's keys), kept_ms (results), log_kept_ms. Keys are derived from base and the id.
local ENDS = {
  cancelled = {state = 'cancelled', status = 499, type = 'invalid_request_error', code = 'task_cancelled',
    message = 'The task was cancelled.'},
  expired = {state = 'expired', status = 504, type = 'timeout_error', code = 'task_expired',
    message = 'The task was not done by its deadline.'},
  quarantined = {state = 'failed', status = 500, type = 'server_error', code = 'task_quarantined',
    message = 'The task was given up: each worker that ran it died. It is kept as a dead letter.'},
}
local HISTORY_BYTES = 8192
local DEAD_KEPT = 10000
local BURIED_MS = 7200000  -- twice the time between two looks of services/scheduler/object_sweep.py

-- nil: there is none (or only the note that it was cancelled before it came).
local function find(id)
  local key, partition = base .. 'task:' .. id, string.match(id, '^[^.]+%.%d+%.%d+%.(%d+)%.')
  local found = redis.pcall('HMGET', key, 'state', 'epoch', 'owner', 'worker', 'attempts', 'last', 'lane', 'session',
    'reply_to', 'created_at_ms', 'started_at_ms', 'deadline_ms', 'crashes', 'failures', 'stop', 'history', 'tenant',
    'tokens_in', 'tokens_out', 'place', 'charge', 'metered', 'cache', 'follows', 'prefix', 'owes', 'tells', 'kept_until_ms')
  if found.err or not found[7] or not partition then return nil end
  return {
    id = id, key = key, log = base .. 'log:' .. id, bus = base .. 'bus:' .. partition,
    state = found[1], epoch = found[2], owner = found[3], worker = found[4] or '',
    attempt = tonumber(found[5]) or 0, last = tonumber(found[6]) or 0, lane = found[7], session = found[8] or '',
    leaves = (found[9] or '') ~= '' or found[22] or found[27], created_at_ms = tonumber(found[10]) or 0, started_at_ms = tonumber(found[11]) or 0,
    deadline_ms = tonumber(found[12]) or math.huge, crashes = tonumber(found[13]) or 0,
    failures = tonumber(found[14]) or 0, stop = found[15], history = found[16] or '', tenant = found[17] or 'default',
    tokens_in = tonumber(found[18]) or 0, tokens_out = tonumber(found[19]) or 0,
    place = tonumber(found[20] or found[10]) or 0, charge = found[21] or '', cache = found[23] or '',
    follows = found[24], prefix = found[25] or '', owes = found[26], kept_until_ms = tonumber(found[28]) or 0,
  }
end

-- The key that keeps the task from being moved, because it holds another type; nil: none does.
local function foreign(task)
  if not is(task.log, 'stream') then return task.log end
  if not is(task.bus, 'stream') then return task.bus end
  local backlog, running = backlog_of(task.lane, task.tenant), running_of(task.tenant)
  if not is(backlog, 'zset') then return backlog end
  if not is(running, 'set') then return running end
  if task.leaves and not is(base .. 'outbox', 'stream') then return base .. 'outbox' end
  if task.session ~= '' and not is(base .. 'session:' .. task.session, 'zset') then
    return base .. 'session:' .. task.session
  end
  return task.cache ~= '' and misplaced(task) or nil
end

-- Live and for replay under one entry id.
local function publish(task, event, journal)
  local entry = redis.call('XADD', task.bus, 'MINID', '~', now_ms - 120000, '*', 't', task.id, 's', task.session, 'e', event)
  redis.call('XADD', task.log, entry, 'e', event, unpack(journal ~= '' and {'j', journal} or {}))
end

-- The attempt that runs has ended, and is not the last one.
local function remember_attempt(task, why)
  if task.state ~= 'processing' or #task.history > HISTORY_BYTES then return end
  task.history = task.history .. cjson.encode({attempt = task.attempt, worker = task.worker,
    started_at_ms = task.started_at_ms, ended_at_ms = now_ms, why = why, last = task.last}) .. '\n'
  redis.call('HSET', task.key, 'history', task.history)
end

-- Back into the waiting order, at its old place or when it is due. Whoever held it can change nothing afterwards.
local function requeue(task, why, due_ms)
  remember_attempt(task, why)
  redis.call('HINCRBY', task.key, 'epoch', 1)
  redis.call('HSET', task.key, 'state', 'pending', 'crashes', task.crashes, 'failures', task.failures)
  redis.call('HDEL', task.key, 'owner', 'worker')
  redis.call('ZREM', base .. 'leases', task.id)
  if let_go(task) then count_one(task, 1) end
  if due_ms then
    redis.call('ZADD', base .. 'later', due_ms, task.id)
  else
    redis.call('ZREM', base .. 'later', task.id)
    line_up(task)
  end
end

-- A session's list expires some time after its newest task came, which may be before an older one has ended.
local function list_again(task)
  if task.session == '' then return end
  local index = base .. 'session:' .. task.session
  redis.call('ZADD', index, 'NX', task.created_at_ms, task.id)
  redis.call('PEXPIRE', index, kept_ms)
end

-- The one way into a terminal state. `used`: tokens of prompt and answer.
local function end_task(task, state, status, result, finished, used)
  publish(task, finished, '')
  redis.call('HSET', task.key, 'state', state, 'status', status, 'last', task.last, 'result', result,
    'finished_at_ms', now_ms, 'finished', finished, 'used', used)
  redis.call('PEXPIRE', task.key, math.max(tonumber(kept_ms), task.kept_until_ms - now_ms))
  redis.call('PEXPIRE', task.log, log_kept_ms)
  for _, index in ipairs({'leases', 'expiry', 'attached'}) do redis.call('ZREM', base .. index, task.id) end
  if not let_go(task) then
    step_out(task)
    count_one(task, -1)
  end
  settle(task, used, task.state == 'processing' and now_ms - task.started_at_ms or nil)
  if task.leaves then redis.call('XADD', base .. 'outbox', '*', 't', task.id) end
  if task.cache ~= '' then land(task, state) end
  list_again(task)
end

-- An end that no engine decided: one of ENDS. Whoever runs it is fenced, and will not take its own end for written. `tokens`: of
-- prompt and answer, if its worker has told them. An answer that was not streamed is charged as it was estimated.
local function end_as(task, word, tokens)
  local kind = ENDS[word]
  local error = cjson.encode({message = kind.message, type = kind.type, code = kind.code})
  local finished = string.format('{"type":"finished.v1","attempt":%d,"last":%d,"state":"%s","status":%d,"streamed":%s,' ..
    '"error":', task.attempt, task.last, kind.state, kind.status, tostring(task.last > 0)) .. error .. '}'
  local used = tonumber(tokens) or 0
  if task.last > 0 or used == 0 and task.state == 'processing' then used = math.max(used, estimated(task)) end
  end_task(task, kind.state, kind.status, '{"error":' .. error .. '}', finished, used)
  redis.call('HDEL', task.key, 'owner')
end

-- A dead letter, with all that is needed to try again. A body that is elsewhere must stay for it: the hash, which says so, is
-- there for long enough to be seen.
local function bury(task, code, reason)
  local spec, body = unpack(redis.call('HMGET', task.key, 'spec', 'body'))
  local entry = redis.call('XADD', base .. 'dead', 'MAXLEN', '~', DEAD_KEPT, '*', 'k', 'task', 't', task.id, 'code', code,
    'reason', reason, 'history', task.history, 'spec', spec or '', 'body', body or '')
  redis.call('HSET', task.key, 'dead', entry)
  if not body then redis.call('PEXPIRE', task.key, BURIED_MS, 'GT') end
end

-- Ask the worker that runs the task to end it as `word`. It is told through its own stream; its beats tell it again.
local function ask_to_stop(task, word)
  if task.stop then return end
  redis.call('HSET', task.key, 'stop', word)
  redis.pcall('XADD', base .. 'work:' .. task.worker, 'NOMKSTREAM', '*', 't', task.id, 'stop', word)
end

-- One more worker has died on it: once more elsewhere, or never again.
local function survive(task, limit, why)
  task.crashes = task.crashes + 1
  if task.stop then
    end_as(task, task.stop)
  elseif task.crashes >= limit then
    remember_attempt(task, why)
    redis.call('HSET', task.key, 'crashes', task.crashes)
    end_as(task, 'quarantined')
    bury(task, 'task_quarantined', ENDS.quarantined.message)
    return 'quarantined'
  else
    requeue(task, why)
  end
  return task.stop or 'again'
end
