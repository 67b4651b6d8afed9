#!lua flags=allow-oom
-- emit: publish ranges of chunks of many running tasks, live and for replay, under one entry id each.
-- KEYS     per task: task, log, bus
-- ARGV     nonce, then per task: id, epoch, first, last, chunks event, journal ('' = none)
-- RETURNS  per task: 'ok' (written now or before) | 'fenced' | 'gap <last written>' | 'wrongtype <key>'
-- INVARIANT chunk numbers of a task are dense: a range is written once, and only behind the one before it.
local nonce = ARGV[1]

-- USES clock

-- An error is a table; XLEN and XADD answer none.
local function emit(task, log, bus, id, epoch, first, last, event, journal)
  local found = redis.pcall('HMGET', task, 'state', 'epoch', 'owner', 'last', 'session')
  if found.err then return 'wrongtype ' .. task end
  local state, current, owner, written, session = unpack(found)
  if state ~= 'processing' or current ~= epoch or owner ~= nonce then return 'fenced' end
  first, last, written = tonumber(first), tonumber(last), tonumber(written)
  if last <= written then return 'ok' end
  if first ~= written + 1 then return 'gap ' .. written end
  if type(redis.pcall('XLEN', log)) == 'table' then return 'wrongtype ' .. log end
  local entry = redis.pcall('XADD', bus, 'MINID', '~', now_ms - 120000, '*', 't', id, 's', session or '', 'e', event)
  if type(entry) == 'table' then return 'wrongtype ' .. bus end
  if journal ~= '' then
    redis.call('XADD', log, entry, 'e', event, 'j', journal)
  else
    redis.call('XADD', log, entry, 'e', event)
  end
  if written == 0 then
    redis.call('HSET', task, 'last', last, 'first_token_at_ms', now_ms)
  else
    redis.call('HSET', task, 'last', last)
  end
  return 'ok'
end

local verdicts = {}
for item = 0, (#ARGV - 1) / 6 - 1 do
  local key, arg = 1 + item * 3, 2 + item * 6
  verdicts[#verdicts + 1] = emit(KEYS[key], KEYS[key + 1], KEYS[key + 2], unpack(ARGV, arg, arg + 5))
end
return verdicts
