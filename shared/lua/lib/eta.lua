-- eta: how many tasks are expected to start before one that waits, and when it starts itself. An estimate of a few look-ups,
-- whatever the number of tasks: lanes are taken for fluids that share the slots, tenants of a lane for equals in size.
-- tests/support/eta.py is the same model as pure code.
-- NEEDS clock; base (of the shard's keys).
local ETA_LANES = {'interactive', 'normal', 'batch'}
local ETA_LANE = {interactive = 1, normal = 2, batch = 3}
-- As in turns.lua: the time over which a pace is forgotten.
local ETA_PACE_MS = 30000
-- A lane with fewer waiting tasks than it starts in so many seconds keeps up: its pace is that of what comes, and goes on.
-- With more of them it is the pace that its share permits, and ends with them.
local ETA_KEEPS_UP_S = 2
-- As in turns.lua: so far, in tokens over share, a lane goes before less urgent ones.
local ETA_AHEAD = 20000
-- As in fair.lua: tokens of a task of a tenant of which nothing is known.
local ETA_MADE = 256
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
    eta_known.paces[i] = rate and tonumber(rate) * math.exp(math.min(0, at_ms - now_ms) / ETA_PACE_MS) or 0
  end
  return eta_known
end

-- Work of each lane that goes before all of less urgent ones, in ms of a slot.
local function eta_ahead(shard, own, waiting, work, tokens)
  local tags, least, of_others, first = shard.tags, math.huge, math.huge, {}
  for i = 1, 3 do
    if i ~= own and waiting[i] > 0 then of_others = math.min(of_others, tags[i]) end
  end
  local own_tag = waiting[own] == 0 and of_others < math.huge and math.max(tags[own], of_others) or tags[own]
  least = math.min(own_tag, of_others)
  for i = 1, 3 do
    local tag = i == own and own_tag or tags[i]
    local counts = i == own or waiting[i] > 0
    first[i] = counts and math.min(work[i], math.max(0, least + ETA_AHEAD - tag) * shard.shares[i] / tokens * shard.runs[i]) or 0
  end
  return first
end

-- How long until `due` tasks of a lane have started, and how many of each lane have by then. Lanes that wait share the slots,
-- as soon as the more urgent ones are far enough ahead; one that has nothing waiting takes what comes, and no lane is left with less than its share.
local function eta_flow(shard, own, due, waiting, left, tokens)
  local work, loads, started, wait_ms = {}, {}, {0, 0, 0}, 0
  for i = 1, 3 do
    work[i] = left[i] * shard.runs[i]
    loads[i] = waiting[i] <= shard.paces[i] * ETA_KEEPS_UP_S and shard.paces[i] * shard.runs[i] / 1000 or 0
  end
  work[own] = math.max(0, due) * shard.runs[own]
  local first = eta_ahead(shard, own, waiting, work, tokens)
  while work[own] > 0 do
    local share, all_shares, taken, rates, done, step_ms, head = 0, 0, 0, {}, own, math.huge, nil
    for i = own, 1, -1 do
      if work[i] > 0 and first[i] > 0 then head = i end
    end
    local last = head or 3
    for i = 1, 3 do
      if work[i] > 0 and i <= last then share = share + shard.shares[i] end
      if (work[i] > 0 and i <= last) or (work[i] == 0 and loads[i] > 0) then all_shares = all_shares + shard.shares[i] end
    end
    for i = 1, 3 do
      if work[i] == 0 and i < own then taken = taken + loads[i] end
      if work[i] == 0 and i > own then taken = taken + math.min(loads[i], shard.slots * shard.shares[i] / all_shares) end
    end
    local room = math.max(shard.slots - taken, shard.slots * share / all_shares)
    for i = 1, 3 do
      rates[i] = work[i] > 0 and i <= last and room * shard.shares[i] / share or 0
      if i == own then rates[i] = math.min(rates[i], shard.limits[i] or rates[i]) end
      if rates[i] > 0 and work[i] / rates[i] < step_ms then done, step_ms = i, work[i] / rates[i] end
    end
    if head and first[head] / rates[head] < step_ms then
      done, step_ms = 0, first[head] / rates[head]
      first[head] = 0
    end
    for i = 1, 3 do
      if rates[i] > 0 then started[i] = started[i] + rates[i] * step_ms / shard.runs[i] end
      work[i] = i ~= done and math.max(0, work[i] - rates[i] * step_ms) or 0
      first[i] = math.max(0, first[i] - rates[i] * step_ms)
    end
    wait_ms = wait_ms + step_ms
  end
  return wait_ms, started
end

local function eta_terms(said)
  local weight, cap = string.match(said or '', '^(%S+) (%S+)$')
  return tonumber(weight) or 1, tonumber(cap) or 0
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
    if name ~= tenant then sum, others = sum + eta_terms(sample.said[i + 1] or sample.said[1]), others + 1 end
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
  local weight, cap = eta_terms(redis.call('HGET', base .. 'tenants', tenant) or redis.call('HGET', base .. 'tenants', '*'))
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
    local tokens = math.max(1, tonumber(redis.call('HGET', base .. 'means', tenant)) or ETA_MADE)
    local ms, by_then = eta_flow(shard, own, due, waiting, left, tokens)
    local _, by_one_less = eta_flow(shard, own, due - 1, waiting, left, tokens)
    wait_ms = ms
    for i = 1, 3 do
      if i ~= own then before = before + (i < own and by_then[i] or by_one_less[i]) end
    end
  end
  if cap > 0 and wait_ms >= 0 then
    local running = tonumber(redis.call('SCARD', base .. 'running:' .. tenant))
    local turns = rank + 1 - math.max(0, cap - running)
    if turns > 0 then wait_ms = run_ms > 0 and math.max(wait_ms, turns * run_ms / cap) or -1 end
  end
  return math.floor(before + 1e-6), wait_ms >= 0 and math.floor(wait_ms + 0.5) or -1, run_ms
end
