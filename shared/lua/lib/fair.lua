-- fair: who waits, and whose turn it is. Start-time fair queueing in tokens, between lanes by share and in a lane between
-- tenants by weight; dispatch moves the clocks (turns.lua), here tenants come, go, and settle.
-- Sources: Goyal, Vin, Cheng, SIGCOMM 1996 (start tags); Sheng and others, OSDI 2024 (tokens; who comes back is lifted to the
-- least of those that wait, and settled counts are never cut off: what was charged too much is owed, not banked).
-- NEEDS clock, types, terms; base (of the shard's keys).
local MEAN_FOLLOWS = 0.1
-- Tenants of which it is known what is usual; the others are taken for all. Without keys anybody may name any tenant.
local MEANS_KEPT = 20000

local function backlog_of(lane, tenant) return base .. 'backlog:' .. lane .. ':' .. tenant end
local function running_of(tenant) return base .. 'running:' .. tenant end

-- What a task may use, before anybody knows.
local function most_tokens(tokens_in, tokens_out) return tokens_in + (tokens_out > 0 and tokens_out or MADE_UNKNOWN) end

local function add(hash, field, by)
  if by ~= 0 and redis.call('HINCRBY', base .. hash, field, by) == 0 then redis.call('HDEL', base .. hash, field) end
end

-- To be admitted into the waiting order.
local function arrive(id) redis.call('XADD', base .. 'in', '*', 't', id) end

-- So many more tasks of a tenant wait, or fewer.
local function count(lane, tenant, tasks, tokens)
  add('waiting', 'n:' .. tenant, tasks)
  add('waiting', 'l:' .. lane, tasks)
  if lane == 'batch' then add('waiting', 'b:' .. tenant, tokens) end
end

local function count_one(task, by)
  count(task.lane, task.tenant, by, by * most_tokens(task.tokens_in, task.tokens_out))
end

-- From the lane's virtual time on, or its own if that is later: an idle tenant neither banks nor loses.
local taking = {}
local function take_turns(lane, tenant)
  local turns, rested = base .. 'turns:' .. lane, base .. 'rested:' .. lane
  if taking[turns .. tenant] or redis.call('ZSCORE', turns, tenant) then
    taking[turns .. tenant] = true
    return
  end
  local _, cap = terms_of(tenant)
  if cap > 0 and redis.call('SCARD', running_of(tenant)) >= cap then return end
  local now = tonumber(redis.call('HGET', base .. 'fair', 'v:' .. lane)) or 0
  local own = redis.call('ZSCORE', rested, tenant)
  if own then redis.call('ZREM', rested, tenant) end
  redis.call('ZADD', turns, math.max(now, tonumber(own) or now), tenant)
  taking[turns .. tenant] = true
end

local function rest(lane, tenant)
  local turns = base .. 'turns:' .. lane
  local tag = redis.call('ZSCORE', turns, tenant)
  if not tag then return end
  taking[turns .. tenant] = nil
  redis.call('ZREM', turns, tenant)
  redis.call('ZADD', base .. 'rested:' .. lane, tag, tenant)
end

local function line_up(task)
  if redis.call('ZADD', backlog_of(task.lane, task.tenant), 'NX', task.place, task.id) == 1 then
    take_turns(task.lane, task.tenant)
  end
end

-- Out of the waiting order, wherever in it the task was.
local function step_out(task)
  redis.call('ZREM', base .. 'later', task.id)
  local backlog = backlog_of(task.lane, task.tenant)
  if redis.call('ZREM', backlog, task.id) == 1 and redis.call('EXISTS', backlog) == 0 then rest(task.lane, task.tenant) end
end

-- Give back the place among its tenant's running tasks; false: it had none.
local function let_go(task)
  if redis.call('SREM', running_of(task.tenant), task.id) == 0 then return false end
  if redis.call('HEXISTS', base .. 'waiting', 'n:' .. task.tenant) == 0 then return true end
  -- Also without a cap: its tenant may have rested for one that was lifted meanwhile.
  for _, lane in ipairs({'interactive', 'normal', 'batch'}) do
    if redis.call('EXISTS', backlog_of(lane, task.tenant)) == 1 then take_turns(lane, task.tenant) end
  end
  return true
end

local function mean_of(before, value)
  before = tonumber(before)
  return string.format('%.1f', before and before + (value - before) * MEAN_FOLLOWS or value)
end

local function charge_back(task, refund, now)
  local turns, rested = base .. 'turns:' .. task.lane, base .. 'rested:' .. task.lane
  local tag = redis.call('ZSCORE', turns, task.tenant)
  if tag then
    redis.call('ZADD', turns, tag - refund, task.tenant)
    return
  end
  tag = (tonumber(redis.call('ZSCORE', rested, task.tenant)) or now) - refund
  if tag > now then redis.call('ZADD', rested, tag, task.tenant) else redis.call('ZREM', rested, task.tenant) end
end

-- Tokens that nobody has counted: a chunk is a token or a few; without chunks, as it was charged when it was handed out.
local function estimated(task)
  if task.last > 0 then return task.tokens_in + task.last end
  return math.floor(tonumber(string.match(task.charge, '^%S+')) or 0)
end

-- A task has ended: what it was charged when it was handed out, against what it used; and what it says of the next ones.
local function settle(task, used, ran_ms)
  local charged, weight = string.match(task.charge, '^(%S+) (%S+)$')
  if not charged then return end
  local now, run_ms = unpack(redis.call('HMGET', base .. 'fair', 'v:' .. task.lane, 'run_ms:' .. task.lane))
  if ran_ms then redis.call('HSET', base .. 'fair', 'run_ms:' .. task.lane, mean_of(run_ms, ran_ms)) end
  charge_back(task, (charged - used) / weight, tonumber(now) or 0)
  if not ran_ms or tonumber(used) == 0 then return end  -- it says nothing of what is usual
  local made, own, all = math.max(0, used - task.tokens_in), unpack(redis.call('HMGET', base .. 'means', task.tenant, '*'))
  redis.call('HSET', base .. 'means', '*', mean_of(all, made))
  if own or redis.call('HLEN', base .. 'means') < MEANS_KEPT then
    redis.call('HSET', base .. 'means', task.tenant, mean_of(own, made))
  end
end

-- Nothing waits or runs: nobody is ahead of anybody, and keys of tenants that may never come again go.
local function forget_shares()
  local fields = {}
  for _, lane in ipairs({'interactive', 'normal', 'batch'}) do
    redis.call('UNLINK', base .. 'rested:' .. lane)
    fields[#fields + 1] = 'v:' .. lane
    fields[#fields + 1] = 't:' .. lane
  end
  redis.call('UNLINK', base .. 'means', base .. 'waiting', base .. 'paces')
  redis.call('HDEL', base .. 'fair', unpack(fields))
end
