#!lua flags=allow-oom
-- batch_end: items of a batch have ended, and their lines lie in the object store.
-- KEYS     state, open, ended, unfiled
-- ARGV     epoch, nonce, segment (its name), output bytes (0: it has none), error bytes (0: it has none), output lines,
--          error lines, tokens in, tokens out, tasks (JSON: those that its holder lets expire behind this), then per item: number,
--          end ('completed', 'failed', 'cancelled', 'expired')
-- RETURNS  'ok' (now or before) | 'twice <number>' (that item had ended) | 'fenced' | 'wrongtype <key>'
-- INVARIANT an item ends once: its bit, its count and the segment that has its line change together. Whoever holds the batch next
--           finds the tasks, should this holder not get so far.
local state, open, ended, unfiled = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local epoch, nonce, segment, output_bytes, error_bytes = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local output_lines, error_lines, tokens_in, tokens_out, tasks = ARGV[6], ARGV[7], ARGV[8], ARGV[9], ARGV[10]

-- USES types

for key, wanted in pairs({[state] = 'hash', [open] = 'hash', [ended] = 'string', [unfiled] = 'list'}) do
  if not is(key, wanted) then return 'wrongtype ' .. key end
end
local held_epoch, owner, last = unpack(redis.call('HMGET', state, 'epoch', 'owner', 'segment'))
if held_epoch ~= epoch or owner ~= nonce then return 'fenced' end
if last == segment then return 'ok' end
for item = 0, (#ARGV - 10) / 2 - 1 do
  if redis.call('GETBIT', ended, ARGV[11 + item * 2]) == 1 then return 'twice ' .. ARGV[11 + item * 2] end
end

for item = 0, (#ARGV - 10) / 2 - 1 do
  redis.call('SETBIT', ended, ARGV[11 + item * 2], 1)
  redis.call('HDEL', open, ARGV[11 + item * 2])
  redis.call('HINCRBY', state, ARGV[12 + item * 2], 1)
end
local counts = {output_lines = output_lines, error_lines = error_lines, tokens_in = tokens_in, tokens_out = tokens_out, segments = 1}
for name, by in pairs(counts) do redis.call('HINCRBY', state, name, by) end
if output_bytes ~= '0' then redis.call('RPUSH', unfiled, 'output ' .. segment .. ' ' .. output_bytes) end
if error_bytes ~= '0' then redis.call('RPUSH', unfiled, 'errors ' .. segment .. ' ' .. error_bytes) end
redis.call('HSET', state, 'segment', segment, 'leaving', tasks)
return 'ok'
