-- types: is a key free, or of the type that it must have?
local function is(key, wanted)
  local kind = redis.call('TYPE', key).ok
  return kind == 'none' or kind == wanted
end
