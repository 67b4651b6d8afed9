#!lua flags=allow-oom
-- batch_feed: items of a batch are open: what has become of them so far, and where its file is read on.
-- KEYS     state, open
-- ARGV     epoch, nonce, offset before, offset behind (bytes; the same: they are fed once more), lines up to there,
--          then per item: number, item
-- RETURNS  'ok' (now or before) | 'gap <offset>' (where it stands) | 'fenced' | 'wrongtype <key>'
-- INVARIANT the file is read on only behind items that are open, so none is left out and none is fed twice.
local state, open = KEYS[1], KEYS[2]
local epoch, nonce, before, behind, lines = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]

-- USES types

for _, key in ipairs({state, open}) do
  if not is(key, 'hash') then return 'wrongtype ' .. key end
end
local held_epoch, owner, offset = unpack(redis.call('HMGET', state, 'epoch', 'owner', 'offset'))
if held_epoch ~= epoch or owner ~= nonce then return 'fenced' end
if offset == behind and before ~= behind then return 'ok' end
if offset ~= before then return 'gap ' .. offset end

for item = 0, (#ARGV - 5) / 2 - 1 do
  redis.call('HSET', open, ARGV[6 + item * 2], ARGV[7 + item * 2])
end
redis.call('HSET', state, 'offset', behind, 'lines', lines)
if before ~= behind then redis.call('HINCRBY', state, 'fed', (#ARGV - 5) / 2) end
return 'ok'
