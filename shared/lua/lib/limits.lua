-- limits: what keeps a task from being accepted: a key of another type, a full backlog, its tenant's allowance, its deadline.
-- Counts are read once a call, kept here while tasks are made, and written back at the end.
-- NEEDS clock, types, shard, fair, task, eta; base, backlog_limit.
local counts, made, waits = {}, {}, {}

-- The key that keeps it from being made, because it holds another type; nil: none does.
local function misused(asked, tenant_index, session_index, bus)
  if not is(tenant_index, 'zset') then return tenant_index end
  if asked.reply_to .. asked.metered .. asked.tells ~= '' and not is(base .. 'outbox', 'stream') then return base .. 'outbox' end
  if asked.session == '' then return nil end
  return not is(session_index, 'zset') and session_index or not is(bus, 'stream') and bus or nil
end

-- The same for one that ends in the same step.
local function unendable(asked, bus)
  for key, wanted in pairs({[bus] = 'stream', [base .. 'log:' .. asked.id] = 'stream',
    [backlog_of(asked.lane, asked.tenant)] = 'zset', [running_of(asked.tenant)] = 'set'}) do
    if not is(key, wanted) then return key end
  end
  return misplaced(asked)
end

local function counted(field)
  counts[field] = counts[field] or tonumber(redis.call('HGET', base .. 'waiting', field)) or 0
  return counts[field]
end

local function tokens_of(asked) return most_tokens(tonumber(asked.tokens_in), tonumber(asked.tokens_out)) end

local slots
local function has_slots(lane)
  slots = slots or redis.call('HGET', base .. 'fair', 'slots') or ''
  local all, normal, batch = string.match(slots, '^(%d+) (%d+) (%d+)$')
  return (tonumber(({interactive = all, normal = normal, batch = batch})[lane]) or 0) > 0
end

-- Predicted from the others that wait; those of one call wait alike. ms, -1: nobody knows. Rejected: to
-- add the mean run. After a long task none with a short deadline would be let in, and so the mean would never change.
local function wait_of(asked)
  local waiting = counted('l:interactive') + counted('l:normal') + counted('l:batch')
  if waiting == 0 and asked.hurried == '' and has_slots(asked.lane) then return 0 end
  local who = asked.lane .. asked.tenant
  if not waits[who] then
    local rank = math.min(counted('n:' .. asked.tenant), counted('l:' .. asked.lane))
    local _, wait_ms = estimate(asked.tenant, asked.lane, rank)
    waits[who] = wait_ms
  end
  return waits[who]
end

-- Share of the backlog that a lane may fill: nobody's batch shuts the door for what is more urgent.
local FILLS = {interactive = 1, normal = 0.9, batch = 0.8}

-- 'full', 'tenant_full', 'batch_full', 'late <ms>'; false: it is accepted. Leaves the predicted wait in `asked`.
local function over_limit(asked)
  if counted('l:interactive') + counted('l:normal') + counted('l:batch') >= backlog_limit * FILLS[asked.lane] then return 'full' end
  local queued, batch = tonumber(asked.queued_limit), tonumber(asked.batch_limit)
  if queued > 0 and counted('n:' .. asked.tenant) >= queued then return 'tenant_full' end
  if asked.lane == 'batch' and batch > 0 and counted('b:' .. asked.tenant) + tokens_of(asked) > batch then return 'batch_full' end
  local wait_ms = wait_of(asked)
  if wait_ms >= 0 then wait_ms = math.max(wait_ms, tonumber(asked.starts_ms)) end
  if asked.hurried ~= '' and wait_ms > tonumber(asked.expires_ms) then return string.format('late %d', wait_ms) end
  asked.wait_ms = wait_ms
  return false
end

local function count_made(asked)
  local who = asked.lane .. ' ' .. asked.tenant
  made[who] = made[who] or {lane = asked.lane, tenant = asked.tenant, tasks = 0, tokens = 0}
  made[who].tasks, made[who].tokens = made[who].tasks + 1, made[who].tokens + tokens_of(asked)
  local more = {['l:' .. asked.lane] = 1, ['n:' .. asked.tenant] = 1}
  if asked.lane == 'batch' then more['b:' .. asked.tenant] = tokens_of(asked) end
  for field, by in pairs(more) do counts[field] = counted(field) + by end
end

local function write_counts()
  for _, some in pairs(made) do count(some.lane, some.tenant, some.tasks, some.tokens) end
end
