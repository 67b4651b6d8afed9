#!lua flags=allow-oom
-- join: lease a reader of the bus, and set its group on each stream to where the reader is.
-- KEYS     readers, then the streams
-- ARGV     group, lease (ms), then per stream: id of the last entry that the reader has processed ('': it begins at the end)
-- RETURNS  per stream: id that its group stands at
-- INVARIANT no group stands above the last id of its stream, so whatever is written next will be read: a stream that lost its
--           newest entries in a failover, or all of them, goes on with ids below what the reader has seen.
local readers = KEYS[1]
local group, lease_ms = ARGV[1], tonumber(ARGV[2])

-- USES clock

local function is_above(id, other)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  local other_ms, other_seq = string.match(other, '^(%d+)-(%d+)$')
  if ms ~= other_ms then return tonumber(ms) > tonumber(other_ms) end
  return tonumber(seq) > tonumber(other_seq)
end

local function last_id(stream)
  if redis.call('EXISTS', stream) == 0 then return '0-0' end
  local info = redis.call('XINFO', 'STREAM', stream)
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then return info[i + 1] end
  end
end

local ends = {}
for i = 2, #KEYS do ends[i] = last_id(KEYS[i]) end  -- raises before the first write if a key holds another type; so does ZCARD
redis.call('ZCARD', readers)
redis.call('ZADD', readers, now_ms + lease_ms, group)

local places = {}
for i = 2, #KEYS do
  local place = ARGV[i + 1]
  if place == '' or is_above(place, ends[i]) then place = ends[i] end
  local made = redis.pcall('XGROUP', 'CREATE', KEYS[i], group, place, 'MKSTREAM')
  if made.err then redis.call('XGROUP', 'SETID', KEYS[i], group, place) end
  places[#places + 1] = place
end
return places
