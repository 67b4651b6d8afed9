-- limits: what keeps a task from being accepted: a key of another type, a full backlog, its tenant's allowance, its deadline.
-- NEEDS clock, types, shard, fair, task, eta; base, backlog_limit.
-- The key that keeps it from being made, because it holds another type; nil: none does.
local function misused(asked, tenant_index, session_index, bus)
  local replies = asked.reply_to ~= '' and base .. 'outbox' or bus
  for key, wanted in pairs({[tenant_index] = 'zset', [session_index] = 'zset', [bus] = 'stream', [replies] = 'stream',
    [base .. 'log:' .. asked.id] = 'stream', [backlog_of(asked.lane, asked.tenant)] = 'zset'}) do
    if not is(key, wanted) then return key end
  end
end

local function counted(field) return tonumber(redis.call('HGET', base .. 'waiting', field)) or 0 end

-- 'full', 'tenant_full', 'batch_full', 'late <ms>'; false: it is accepted. Leaves the predicted wait in `asked`.
local function over_limit(asked)
  if counted('l:interactive') + counted('l:normal') + counted('l:batch') >= backlog_limit then return 'full' end
  local queued, batch = tonumber(asked.queued_limit), tonumber(asked.batch_limit)
  if queued > 0 and counted('n:' .. asked.tenant) >= queued then return 'tenant_full' end
  if asked.lane == 'batch' and batch > 0 then
    local tokens = most_tokens(tonumber(asked.tokens_in), tonumber(asked.tokens_out))
    if counted('b:' .. asked.tenant) + tokens > batch then return 'batch_full' end
  end
  local _, wait_ms = estimate(asked.tenant, asked.lane, math.min(counted('n:' .. asked.tenant), counted('l:' .. asked.lane)))
  if wait_ms >= 0 then wait_ms = math.max(wait_ms, tonumber(asked.starts_ms)) end
  if asked.hurried ~= '' and wait_ms > tonumber(asked.expires_ms) then return 'late ' .. wait_ms end
  asked.wait_ms = wait_ms
  return false
end
