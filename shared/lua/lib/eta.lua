-- eta: how many tasks are expected to start before one that waits, and when it starts itself. An estimate of a few look-ups,
-- whatever the number of tasks: lanes are taken for fluids that share the slots, tenants of a lane for equals in size.
-- tests/support/eta.py is the same model as pure code.
-- NEEDS clock, terms, flow, paces; base (of the shard's keys).
local ETA_LANES = {'interactive', 'normal', 'batch'}
local ETA_LANE = {interactive = 1, normal = 2, batch = 3}
-- Tenants of a lane whose weights are looked up; the rest is taken for their mean.
local ETA_TENANTS = 8
local eta_known
local eta_sample = {}

-- What is true of the whole shard: `slots` of live workers (three numbers: of all lanes, of normal and batch together, of
-- batch), paces and mean runs. Read once: no script that estimates changes it.
local function eta_shard(slots)
  if eta_known then return eta_known end
  local fair = redis.call('HMGET', base .. 'fair', 'slots', 'share:interactive', 'share:normal', 'share:batch',
    'run_ms:interactive', 'run_ms:normal', 'run_ms:batch', 'pace:interactive', 'pace:normal', 'pace:batch',
    't:interactive', 't:normal', 't:batch')
  local all, normal, batch = string.match(slots or fair[1] or '', '^(%d+) ?(%d*) ?(%d*)')
  eta_known = {slots = tonumber(all) or 0, limits = {nil, tonumber(normal), tonumber(batch)}, shares = {},
    runs = {}, paces = {}, tags = {}}
  local any_run = fair[5] or fair[6] or fair[7]
  for i = 1, 3 do
    local rate, at_ms = string.match(fair[7 + i] or '', '^(%S+) (%S+)$')
    eta_known.tags[i] = tonumber(fair[10 + i]) or 0
    eta_known.shares[i] = tonumber(fair[1 + i]) or 1
    local run_ms = tonumber(fair[4 + i] or any_run)
    eta_known.runs[i] = run_ms and math.max(1, run_ms) or 0
    eta_known.paces[i] = rate and tonumber(rate) * math.exp(math.min(0, at_ms - now_ms) / PACE_MS) or 0
  end
  return eta_known
end

-- Mean weight of the other tenants that take turns in a lane. Their names are read once.
local function eta_weight_of_others(lane, tenant)
  local sample = eta_sample[lane]
  if not sample then
    local names = redis.call('ZRANGE', base .. 'turns:' .. lane, 0, ETA_TENANTS - 1)
    sample = {names = names, said = redis.call('HMGET', base .. 'tenants', '*', unpack(names))}
    eta_sample[lane] = sample
  end
  local sum, others = 0, 0
  for i, name in ipairs(sample.names) do
    if name ~= tenant then sum, others = sum + read_terms(sample.said[i + 1] or sample.said[1]), others + 1 end
  end
  return others > 0 and sum / others or 1
end

-- Tasks of the lane that start before one that has `rank` tasks of its tenant before it. Between two of its own, each of the
-- other tenants has as many turns as its weight is larger, after those whose turn comes before.
local function eta_in_lane(lane, tenant, rank, waiting, weight)
  local turns = base .. 'turns:' .. lane
  local own = redis.call('ZCARD', base .. 'backlog:' .. lane .. ':' .. tenant)
  local of_others = math.max(0, waiting - math.max(own, rank))
  local ahead, others = redis.call('ZRANK', turns, tenant), redis.call('ZCARD', turns)
  if ahead then
    others = others - 1
  else
    local now = tonumber(redis.call('HGET', base .. 'fair', 'v:' .. lane)) or 0
    local tag = math.max(now, tonumber(redis.call('ZSCORE', base .. 'rested:' .. lane, tenant)) or now)
    ahead = redis.call('ZCOUNT', turns, '-inf', tag)
  end
  return rank + math.min(of_others, ahead + rank / weight * others * eta_weight_of_others(lane, tenant))
end

-- Tasks that start before it, and ms until it starts: 0 when a slot is free for it; -1 when nobody can know, because there is
-- no worker or no task has ended yet. Third the mean run of its lane, ms. `slots`: of live workers, as in eta_shard; nil: as
-- the last dispatch saw them. Another lane counts if somebody takes turns in it: else its tasks are not due, or their tenants
-- run as many as they may.
local function estimate(tenant, lane, rank, slots)
  local shard, own = eta_shard(slots), ETA_LANE[lane]
  local waiting = redis.call('HMGET', base .. 'waiting', 'l:interactive', 'l:normal', 'l:batch')
  for i, name in ipairs(ETA_LANES) do
    local counts = i == own or redis.call('EXISTS', base .. 'turns:' .. name) == 1
    waiting[i] = counts and tonumber(waiting[i]) or 0
  end
  local weight, cap = terms_of(tenant)
  local in_lane = eta_in_lane(lane, tenant, rank, waiting[own], weight)

  local usable = math.min(shard.slots, shard.limits[own] or shard.slots)
  local free = math.max(0, usable - redis.call('ZCARD', base .. 'leases'))
  local left, before = {unpack(waiting)}, in_lane
  for i = 1, own - 1 do
    local taken = math.min(free, left[i])
    left[i], free, before = left[i] - taken, free - taken, before + taken
  end
  local due, wait_ms, run_ms = in_lane + 1 - free, 0, shard.runs[own]
  if due > 0 and (shard.slots == 0 or run_ms == 0) then
    wait_ms = -1
    for i = 1, own - 1 do before = before + left[i] end
  elseif due > 0 then
    local tokens = math.max(1, tonumber(redis.call('HGET', base .. 'means', tenant)) or MADE_UNKNOWN)
    local ms, by_then = eta_flow(shard, own, due, waiting, left, tokens)
    local _, by_one_less = eta_flow(shard, own, due - 1, waiting, left, tokens)
    wait_ms = ms < math.huge and ms or -1  -- no worker runs this lane
    for i = 1, 3 do
      if i ~= own then before = before + (i < own and by_then[i] or by_one_less[i]) end
    end
  end
  if cap > 0 and wait_ms >= 0 then
    local running = tonumber(redis.call('SCARD', base .. 'running:' .. tenant))
    local turns = rank + 1 - math.max(0, cap - running)
    if turns > 0 then wait_ms = run_ms > 0 and math.max(wait_ms, turns * run_ms / cap) or -1 end
  end
  if wait_ms >= 0 then wait_ms = math.max(wait_ms, wait_at_own_pace(lane, tenant, rank, waiting[own])) end
  return math.floor(before + 1e-6), wait_ms >= 0 and math.floor(wait_ms + 0.5) or -1, run_ms
end
