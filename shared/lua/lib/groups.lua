-- groups: batch tasks of a tenant whose prompts begin alike wait at one place, so they run together while the KV cache holds
-- that beginning. A group takes members for a time only: nobody is overtaken for longer.
-- NEEDS clock, types, fair; base.
local GROUP_MS = 600000

-- The place of the longest beginning that came before; the longer ones get places of their own right behind it.
local function join_group(task)
  if task.lane ~= 'batch' or task.prefix == '' then return end
  local keys, missing, place = {}, {}, nil
  for digest in string.gmatch(task.prefix, '[^,]+') do keys[#keys + 1] = base .. 'group:' .. task.tenant .. ':' .. digest end
  for i, known in ipairs(redis.call('MGET', unpack(keys))) do
    known = tonumber(known)
    if known and known > now_ms - GROUP_MS and not place then place = known end
    if not place then missing[#missing + 1] = keys[i] end
  end
  place = #missing == #keys and task.created_at_ms or place
  if #missing > 0 then place = place + (time[2] % 1000 + 1) / 2048 end
  for _, key in ipairs(missing) do redis.call('SET', key, string.format('%.17g', place), 'PX', GROUP_MS) end
  task.place = place
  redis.call('HSET', task.key, 'place', string.format('%.17g', place))
end
