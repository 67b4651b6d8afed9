-- paces: how many tasks start in a second, of a lane, and of a tenant while its backlog stands. Decayed: what is past counts less.
-- NEEDS clock; base.
local PACE_MS, OWN_PACE_MS = 30000, 10000
local TELLS_MS = 2000

local function decayed(rate, at_ms, tasks, over_ms)
  local passed_ms = math.max(0, now_ms - (tonumber(at_ms) or now_ms))  -- a clock may have been set back
  return (tonumber(rate) or 0) * math.exp(-passed_ms / over_ms) + tasks * 1000 / over_ms
end

-- `<tasks a second> <at ms>` of a lane, with so many tasks more.
local function pace_of(said, tasks)
  local rate, at_ms = string.match(said, '^(%S+) (%S+)$')
  return string.format('%.6f %d', decayed(rate, at_ms, tasks, PACE_MS), now_ms)
end

-- `tasks` more of a tenant have started, and others wait; false: none does.
local function note_pace(lane, tenant, tasks)
  local field = lane .. ' ' .. tenant
  if not tasks then
    redis.call('HDEL', base .. 'paces', field)
    return
  end
  local rate, at_ms, since_ms = string.match(redis.call('HGET', base .. 'paces', field) or '', '^(%S+) (%S+) (%S+)$')
  rate = decayed(rate, at_ms, tasks, OWN_PACE_MS)
  redis.call('HSET', base .. 'paces', field, string.format('%.6f %d %s', rate, now_ms, since_ms or now_ms))
end

-- ms until `rank` tasks of a tenant have started, as fast as its backlog gets less: others that come later go before them for
-- as long as it stands. No more than thrice what all that wait in the lane take, for a tenant whose turn is rare is told little
-- by its last ones. 0: it has not stood for long enough to tell.
local function wait_at_own_pace(lane, tenant, rank, waiting)
  local said = redis.call('HGET', base .. 'paces', lane .. ' ' .. tenant) or ''
  local rate, at_ms, since_ms = string.match(said, '^(%S+) (%S+) (%S+)$')
  if not rate or now_ms - since_ms < TELLS_MS then return 0 end
  rate = decayed(rate, at_ms, 0, OWN_PACE_MS) / (1 - math.exp((since_ms - now_ms) / OWN_PACE_MS))
  local lane_rate, lane_at_ms = string.match(redis.call('HGET', base .. 'fair', 'pace:' .. lane) or '', '^(%S+) (%S+)$')
  local longest_ms = 3000 * waiting / math.max(1e-6, decayed(lane_rate, lane_at_ms, 0, PACE_MS))
  return rate > 0 and math.min(rank / rate * 1000, longest_ms) or 0
end
