#!lua flags=allow-oom
-- batch_lease: who feeds a batch. Taken if nobody holds it, renewed by who does, given back.
-- KEYS     state
-- ARGV     nonce, lease (ms; 0: give it back)
-- RETURNS  'held <epoch>' | 'taken' (another one holds it) | 'given' | 'ended' | 'unknown' | 'wrongtype <key>'
-- INVARIANT one holder at a time. Who takes it raises the epoch, so the one before can write nothing more.
local state, nonce, lease_ms = KEYS[1], ARGV[1], tonumber(ARGV[2])

-- USES clock, types

local ENDED = {completed = true, failed = true, cancelled = true, expired = true}
if not is(state, 'hash') then return 'wrongtype ' .. state end
local status, epoch, owner, until_ms = unpack(redis.call('HMGET', state, 'status', 'epoch', 'owner', 'lease_until_ms'))
if not status then return 'unknown' end
if lease_ms == 0 then
  if owner == nonce then redis.call('HDEL', state, 'owner', 'lease_until_ms') end
  return 'given'
end
if ENDED[status] then return 'ended' end
if owner and owner ~= nonce and tonumber(until_ms) > now_ms then return 'taken' end
if owner ~= nonce then epoch = redis.call('HINCRBY', state, 'epoch', 1) end
redis.call('HSET', state, 'owner', nonce, 'lease_until_ms', now_ms + lease_ms)
return 'held ' .. epoch
