-- types: is a key free, or of the type that it must have? Asked once a call: afterwards only this script writes to it.
local right = {}

local function is(key, wanted)
  if right[key] == wanted then return true end
  local kind = redis.call('TYPE', key).ok
  if kind ~= 'none' and kind ~= wanted then return false end
  right[key] = wanted
  return true
end
