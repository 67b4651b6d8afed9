#!lua flags=allow-oom
-- batch_move: the one way from one status of a batch to the next.
-- KEYS     state, open, ended, unfiled
-- ARGV     epoch, nonce (both '': a client asks), kept (ms; 0: the batch goes on), statuses it may have (a comma between),
--          status it gets, then per field: name, value
-- RETURNS  'ok' (now or before) | 'is <status>' (one that it may not have) | 'fenced' | 'unknown' | 'wrongtype <key>'
-- INVARIANT only the holder of the lease ends a batch, and only when every item that was opened has ended. One whose webhook was
--          not told yet does not expire: who tells it sets the time.
local state, open, ended, unfiled = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local epoch, nonce, kept_ms, from, to = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5]

-- USES clock, types

for key, wanted in pairs({[state] = 'hash', [open] = 'hash', [ended] = 'string', [unfiled] = 'list'}) do
  if not is(key, wanted) then return 'wrongtype ' .. key end
end
local status, held_epoch, owner, webhook = unpack(redis.call('HMGET', state, 'status', 'epoch', 'owner', 'webhook'))
if not status then return 'unknown' end
if nonce ~= '' and (held_epoch ~= epoch or owner ~= nonce) then return 'fenced' end
if status == to then return 'ok' end
if not string.find(',' .. from .. ',', ',' .. status .. ',', 1, true) then return 'is ' .. status end
if kept_ms > 0 and redis.call('HLEN', open) + redis.call('LLEN', unfiled) > 0 then return 'is ' .. status end

redis.call('HSET', state, 'status', to, to .. '_at_ms', now_ms, unpack(ARGV, 6))
if kept_ms > 0 then
  redis.call('HDEL', state, 'twice', 'leaving')
  redis.call('UNLINK', ended)
  if not webhook or webhook == '' then redis.call('PEXPIRE', state, kept_ms) end
end
return 'ok'
