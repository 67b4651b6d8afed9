-- entries: of work streams. An entry is a slot that is taken; those of the less urgent lanes are counted beside it.
-- NEEDS clock, types, fair; base.
local function fields_of(entry)
  local fields = {}
  for i = 1, #entry[2], 2 do fields[entry[2][i]] = entry[2][i + 1] end
  return fields
end

-- Remove an entry, and with it give the slot back. `task`: whose it is, if that is known.
local function clear(stream, id, task)
  local entry = not task and redis.call('XRANGE', stream, id, id)[1]
  local lane = task and task.lane or (entry and fields_of(entry).l)
  redis.call('XACK', stream, 'workers', id)
  if redis.call('XDEL', stream, id) == 0 or not lane or lane == 'interactive' then return end
  add('held', string.sub(stream, #base + 6) .. ' ' .. lane, -1)
end

local function forget_worker(worker, stream)
  redis.call('DEL', stream)
  redis.call('HDEL', base .. 'workers', worker)
  redis.call('HDEL', base .. 'suspects', worker)
  redis.call('HDEL', base .. 'held', worker .. ' normal', worker .. ' batch')
end
