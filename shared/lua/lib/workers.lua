-- workers: who is alive, and which lanes each has room for.
-- NEEDS clock; base, workers_key, too_old_ms.
local workers, alive = {}, {0, 0, 0}

local function meet(name, slots, normal, batch)
  local stream = base .. 'work:' .. name
  local held_normal, held_batch = unpack(redis.call('HMGET', base .. 'held', name .. ' normal', name .. ' batch'))
  alive = {alive[1] + slots, alive[2] + normal, alive[3] + batch}
  workers[#workers + 1] = {name = name, stream = stream, slots = tonumber(slots), free = slots - redis.call('XLEN', stream),
    normal = normal - (tonumber(held_normal) or 0) - (tonumber(held_batch) or 0), batch = batch - (tonumber(held_batch) or 0), got = {}}
end

do
  local announced = redis.call('HGETALL', workers_key)
  for i = 1, #announced, 2 do
    local beat_ms, slots, normal, batch = string.match(announced[i + 1], '^(%d+) (%d+) (%d+) (%d+) ')
    if beat_ms and now_ms - beat_ms <= too_old_ms then meet(announced[i], slots, normal, batch) end
  end
end

local function room(worker, lane)
  if lane == 'interactive' then return worker.free end
  if lane == 'normal' then return math.min(worker.free, worker.normal) end
  return math.min(worker.free, worker.normal, worker.batch)
end

-- The worker with the most room for the lane, of those that `may` accepts; nil: none has any.
local function freest(lane, may)
  local best, most_room
  for _, worker in ipairs(workers) do
    local has = room(worker, lane)
    if has > 0 and (not best or has > most_room) and (not may or may(worker)) then best, most_room = worker, has end
  end
  return best
end

-- Workers that have room, by lane: counted once, because it is asked before each task.
local with_room = {interactive = 0, normal = 0, batch = 0}
local function count_room(worker, by)
  for lane, counted in pairs(with_room) do
    if room(worker, lane) > 0 then with_room[lane] = counted + by end
  end
end
for _, worker in ipairs(workers) do count_room(worker, 1) end

-- One task more is on its way to the worker.
local function occupy(worker, lane)
  count_room(worker, -1)
  worker.free = worker.free - 1
  worker.got[lane] = (worker.got[lane] or 0) + 1
  if lane ~= 'interactive' then worker.normal = worker.normal - 1 end
  if lane == 'batch' then worker.batch = worker.batch - 1 end
  count_room(worker, 1)
end

local function free_slots()
  local free = 0
  for _, worker in ipairs(workers) do free = free + math.max(0, worker.free) end
  return free
end
