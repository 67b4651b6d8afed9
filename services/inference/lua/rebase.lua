#!lua flags=allow-oom
-- rebase: an attempt tells readers that it goes on behind what earlier ones published, or that it starts over.
-- KEYS     task, log, bus
-- ARGV     nonce, id, epoch, attempt, chunks it goes on behind (0 = it starts over)
-- RETURNS  'ok' (now or before) | 'fenced' | 'gap <last written>' | 'wrongtype <key>'
-- INVARIANT an attempt goes on behind all that was published, or behind nothing; it says so before its first chunk.
local key, log, bus = KEYS[1], KEYS[2], KEYS[3]
local nonce, id, epoch, attempt, behind = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]

-- USES clock, types

if not is(key, 'hash') then return 'wrongtype ' .. key end
if not is(log, 'stream') then return 'wrongtype ' .. log end
if not is(bus, 'stream') then return 'wrongtype ' .. bus end
local state, current, owner, last, session, rebased = unpack(redis.call('HMGET', key, 'state', 'epoch', 'owner', 'last',
  'session', 'rebased'))
if state ~= 'processing' or current ~= epoch or owner ~= nonce then return 'fenced' end
if rebased == attempt .. ' ' .. behind then return 'ok' end
local event
if behind == '0' then
  event = '{"type":"reset.v1","attempt":' .. attempt .. ',"why":"retry"}'
elseif behind == last then
  event = '{"type":"resumed.v1","attempt":' .. attempt .. ',"last":' .. last .. '}'
else
  return 'gap ' .. last
end
local entry = redis.call('XADD', bus, 'MINID', '~', now_ms - 120000, '*', 't', id, 's', session or '', 'e', event)
redis.call('XADD', log, entry, 'e', event)
redis.call('HSET', key, 'last', behind, 'from', behind, 'rebased', attempt .. ' ' .. behind)
return 'ok'
