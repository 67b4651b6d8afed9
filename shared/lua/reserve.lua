#!lua
-- reserve: bind a producer's key to one task id and one body.
-- KEYS     reservation
-- ARGV     id, fingerprint of the body ('-' = any: the task is cancelled before it comes), kept (ms)
-- RETURNS  {'reserved' | 'known' | 'conflict', the task id that the key is bound to} | {'wrongtype', key}
-- INVARIANT the first sender's id stays until the reservation expires, and so does the first body's fingerprint.
local reservation = KEYS[1]
local id, fingerprint, kept_ms = ARGV[1], ARGV[2], ARGV[3]

local kind = redis.call('TYPE', reservation).ok
if kind == 'none' then
  redis.call('SET', reservation, fingerprint .. ' ' .. id, 'PX', kept_ms)
  return {'reserved', id}
elseif kind ~= 'string' then
  return {'wrongtype', reservation}
end
local known, bound = string.match(redis.call('GET', reservation), '^(%S+) (%S+)$')
if known == '-' then
  redis.call('SET', reservation, fingerprint .. ' ' .. bound, 'KEEPTTL')
elseif known ~= fingerprint and fingerprint ~= '-' then
  return {'conflict', bound}
end
return {'known', bound}
