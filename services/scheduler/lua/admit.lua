#!lua flags=allow-oom
-- admit: move arrivals into the waiting order of their lane, and clear them from `in`.
-- KEYS     in, backlog of each lane (3), then per arrival: task (any key for a wake-up)
-- ARGV     per arrival: id ('' for a wake-up), entry id
-- RETURNS  per arrival: 'queued' | 'handed out' (it was admitted before) | state | 'missing' | 'wrongtype <key>' | 'wake'
-- INVARIANT a pending task with epoch 0 is in `in` or in a backlog.
local arrivals = KEYS[1]
local backlogs = {interactive = KEYS[2], normal = KEYS[3], batch = KEYS[4]}

local function admit(task, id)
  if id == '' then return 'wake' end
  local kind = redis.call('TYPE', task).ok
  if kind == 'none' then return 'missing' end
  if kind ~= 'hash' then return 'wrongtype ' .. task end
  local state, epoch, lane, created_at_ms = unpack(redis.call('HMGET', task, 'state', 'epoch', 'lane', 'created_at_ms'))
  if state ~= 'pending' then return state or 'missing' end
  if epoch ~= '0' then return 'handed out' end
  redis.call('ZADD', backlogs[lane], 'NX', created_at_ms, id)
  return 'queued'
end

redis.call('XLEN', arrivals)  -- raises before the first write if a key holds another type; so does the next line
for _, backlog in pairs(backlogs) do redis.call('ZCARD', backlog) end
local verdicts, entries = {}, {}
for item = 0, #ARGV / 2 - 1 do
  local id, entry = unpack(ARGV, item * 2 + 1, item * 2 + 2)
  verdicts[#verdicts + 1] = admit(KEYS[5 + item], id)
  entries[#entries + 1] = entry
end
if #entries > 0 then
  redis.call('XACK', arrivals, 'scheduler', unpack(entries))
  redis.call('XDEL', arrivals, unpack(entries))
end
return verdicts
