#!lua flags=no-writes
-- place: where waiting tasks stand, and when each of them is expected to start. Nothing is changed.
-- KEYS     workers, later
-- ARGV     base of the shard's keys, age at which a worker's beat is too old (ms), then per task: id (or a lane: the end of it)
-- RETURNS  per task: {position (1 = next of all, 0 = in no line), ms until it starts (-1 = unknown), why it waits, due at (ms)}
--          | {} (it does not wait). Why: 'no_worker' | 'slots' | 'tenant_running' (its tenant has as many as it may) |
--          'later' (until its time) | 'quota' (its tenant has used up its own, until then) | 'following' (another task makes
--          its answer) | 'handed_out' (a worker has it)
-- INVARIANT the cost does not depend on how many tasks wait.
-- The task keys and those of the line are computed: they share the shard's hash tag.
local workers, later = KEYS[1], KEYS[2]
local base, too_old_ms = ARGV[1], tonumber(ARGV[2])

-- USES clock, terms, flow, paces, eta

-- As announced by live workers; a dispatch may have seen others.
local function slots_alive()
  local announced, all, normal, batch = redis.call('HGETALL', workers), 0, 0, 0
  for i = 1, #announced, 2 do
    local beat_ms, slots, some, few = string.match(announced[i + 1], '^(%d+) (%d+) (%d+) (%d+) ')
    if beat_ms and now_ms - beat_ms <= too_old_ms then all, normal, batch = all + slots, normal + some, batch + few end
  end
  return string.format('%d %d %d', all, normal, batch)
end

local slots = slots_alive()
local no_worker = string.match(slots, '^0 ') ~= nil

local function is_at_cap(tenant)
  local _, cap = terms_of(tenant)
  return cap > 0 and redis.call('SCARD', base .. 'running:' .. tenant) >= cap
end

local function line(lane, tenant, rank)
  local before, wait_ms = estimate(tenant, lane, rank, slots)
  return {before + 1, wait_ms, no_worker and 'no_worker' or is_at_cap(tenant) and 'tenant_running' or 'slots', 0}
end

-- Not in its line yet: first it must be due.
local function not_yet(lane, tenant, place, due_ms, why)
  local rank = redis.call('ZCOUNT', base .. 'backlog:' .. lane .. ':' .. tenant, '-inf', '(' .. place)
  local wait_ms = line(lane, tenant, rank)[2]
  return {0, wait_ms < 0 and -1 or math.max(wait_ms, due_ms - now_ms), why, due_ms}
end

local function place(id)
  if ETA_LANE[id] then return line(id, '', tonumber(redis.call('HGET', base .. 'waiting', 'l:' .. id)) or 0) end
  local state, lane, tenant, came_ms, at_ms, owes, digest = unpack(redis.pcall('HMGET', base .. 'task:' .. id, 'state', 'lane',
    'tenant', 'created_at_ms', 'place', 'owes', 'follows'))
  if state ~= 'pending' or not tenant then return {} end
  at_ms = at_ms or came_ms
  if digest then
    local leader = redis.pcall('GET', base .. 'flight:' .. digest)
    local leads = type(leader) == 'string' and redis.call('HEXISTS', base .. 'task:' .. leader, 'follows') == 0
    local led = leads and place(leader) or {}
    return {0, led[2] or -1, 'following', led[4] or 0}
  end
  local backlog = base .. 'backlog:' .. lane .. ':' .. tenant
  local rank = redis.call('ZRANK', backlog, id)
  if rank then return line(lane, tenant, rank) end
  local due_ms = tonumber(redis.call('ZSCORE', later, id))
  if due_ms then return not_yet(lane, tenant, at_ms, due_ms, owes == '1' and 'quota' or 'later') end
  if redis.call('SISMEMBER', base .. 'running:' .. tenant, id) == 1 then return {0, 0, 'handed_out', 0} end
  return line(lane, tenant, redis.call('ZCOUNT', backlog, '-inf', '(' .. at_ms))
end

local places = {}
for item = 3, #ARGV do places[#places + 1] = place(ARGV[item]) end
return places
