-- turns: the clocks of a dispatch: which lane, which tenant is next, and what it is charged. They are read once, kept here
-- while tasks are handed out, and written back at the end, so a decision costs the same however many wait. The turns of a lane
-- are a heap by tag.
-- NEEDS clock, types, fair, workers, paces, heap; base, most (tasks of this call), shares (of the three lanes).
-- Tenants beside those that the slots are for: some have all their tasks put aside, or have reached their cap in another lane.
local SPARE = 10
local lanes, known, handed_out = {}, {}, 0
local looked_at = free_slots() > 0 and math.min(most, free_slots()) + SPARE or 0  -- tenants of a lane: each call raises so many tags

local made_by_all = redis.call('HGET', base .. 'means', '*')
local clocks = redis.call('HMGET', base .. 'fair', 'v:interactive', 't:interactive', 'pace:interactive', 'v:normal', 't:normal',
  'pace:normal', 'v:batch', 't:batch', 'pace:batch')
for i, name in ipairs({'interactive', 'normal', 'batch'}) do
  local now, tag, pace = unpack(clocks, i * 3 - 2, i * 3)
  local listed = looked_at > 0 and redis.call('ZRANGE', base .. 'turns:' .. name, 0, looked_at - 1, 'WITHSCORES') or {}
  local lane = {name = name, share = tonumber(shares[i]), now = tonumber(now) or 0, tag = tonumber(tag) or 0, pace = pace or '',
    turns = {}, handed = 0, touched = {}}
  for k = 1, #listed, 2 do lane.turns[#lane.turns + 1] = {name = listed[k], tag = tonumber(listed[k + 1]), tasks = 0, tokens = 0} end
  lanes[i] = lane
end

-- What a tenant has in all lanes.
local function meet_tenant(name)
  if not known[name] then
    local weight, cap = terms_of(name)
    known[name] = {weight = weight, cap = cap, running = tonumber(redis.pcall('SCARD', running_of(name))),
      mean = tonumber(redis.call('HGET', base .. 'means', name) or made_by_all) or MADE_UNKNOWN}
  end
  return known[name]
end

-- Or its key holds another type: nothing of it can run, and it holds up nobody.
local function at_cap(tenant) return not tenant.running or (tenant.cap > 0 and tenant.running >= tenant.cap) end

-- Of the lanes that wait and have room the most urgent that is not too far ahead. The others are lifted to the one that is
-- least: a lane that has nothing to run, or may run no more, banks nothing.
local function next_lane()
  local least, best = math.huge, nil
  for _, lane in ipairs(lanes) do
    lane.runs = #lane.turns > 0 and with_room[lane.name] > 0
    if lane.runs then least = math.min(least, lane.tag) end
  end
  if least == math.huge then return nil end
  for _, lane in ipairs(lanes) do
    if not lane.runs then lane.tag = math.max(lane.tag, least) end
    if lane.runs and not best and lane.tag <= least + AHEAD then best = lane end
  end
  return best
end

local function next_turn(lane)
  local turn = lane.turns[1]
  if not turn.tenant then
    turn.tenant = meet_tenant(turn.name)
    lane.touched[#lane.touched + 1] = turn
  end
  return turn
end

-- Tokens of a task before it runs: its prompt, and what is usual, if it may make that much. Rejected: more than is usual, to be
-- on the safe side. Whoever has many tasks on their way would be far behind, and get all slots at once when they have ended.
local function estimate_of(turn, tokens_in, tokens_out)
  local made = turn.tenant.mean
  return tokens_in + (tokens_out > 0 and math.min(tokens_out, made) or made)
end

-- A task of the turn has left the backlog for a worker; `tokens` are charged. Its tenant settles with what it used; its lane does
-- not, since what is usual is right for so many.
local function hand_over(lane, turn, counted, tokens)
  handed_out, lane.handed = handed_out + 1, lane.handed + 1
  turn.tasks, turn.tokens, turn.tenant.running = turn.tasks + 1, turn.tokens + counted, turn.tenant.running + 1
  lane.now = turn.tag
  turn.tag = turn.tag + tokens / turn.tenant.weight
  lane.tag = lane.tag + tokens / lane.share
end

-- What was listed is no task that waits: somebody has removed it.
local function pass_over(turn) turn.tasks = turn.tasks + 1 end

-- One turn, given to hand_out; false: nothing can be handed out any more.
local looks = 0
local function take(hand_out)
  local lane = next_lane()
  looks = looks + 1
  if not lane or looks > most * 10 then return false end
  local turn = next_turn(lane)
  local id = not at_cap(turn.tenant) and redis.pcall('ZPOPMIN', backlog_of(lane.name, turn.name))[1]
  if id then hand_out(lane, turn, id) else drop_first(lane.turns) end
  sink(lane.turns)
  return true
end

local function write_back(lane)
  for _, turn in ipairs(lane.touched) do
    local waits = redis.call('EXISTS', backlog_of(lane.name, turn.name)) == 1
    count(lane.name, turn.name, -turn.tasks, -turn.tokens)
    redis.call('ZADD', base .. 'turns:' .. lane.name, turn.tag, turn.name)
    if not waits then rest(lane.name, turn.name) end
    note_pace(lane.name, turn.name, waits and turn.tasks)
  end
  if #lane.touched > 0 then redis.call('ZREMRANGEBYSCORE', base .. 'rested:' .. lane.name, '-inf', lane.now) end
  for _, worker in ipairs(workers) do
    if lane.name ~= 'interactive' then add('held', worker.name .. ' ' .. lane.name, worker.got[lane.name] or 0) end
  end
end

-- A cap counts in all lanes: who has reached it takes no turns in the others either.
local function rest_at_cap()
  for name, tenant in pairs(known) do
    for _, lane in ipairs(at_cap(tenant) and lanes or {}) do rest(lane.name, name) end
  end
end

-- A dispatch that looked at no tenant has changed nothing.
local function write_all_back()
  local touched, fields = 0, {'slots', table.concat(alive, ' ')}
  for _, lane in ipairs(lanes) do
    touched = touched + #lane.touched
    for name, value in pairs({v = lane.now, t = lane.tag, share = lane.share, pace = lane.handed > 0 and pace_of(lane.pace, lane.handed) or nil}) do
      fields[#fields + 1] = name .. ':' .. lane.name
      fields[#fields + 1] = value
    end
  end
  if touched == 0 then return end
  for _, lane in ipairs(lanes) do write_back(lane) end
  rest_at_cap()
  redis.call('HSET', base .. 'fair', unpack(fields))
end

local function still_waiting()
  local tasks = 0
  for _, lane in ipairs(redis.call('HMGET', base .. 'waiting', 'l:interactive', 'l:normal', 'l:batch')) do
    tasks = tasks + (tonumber(lane) or 0)
  end
  return tasks
end
