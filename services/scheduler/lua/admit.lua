#!lua flags=allow-oom
-- admit: move arrivals into the waiting order, and clear them from `in`.
-- KEYS     in, later
-- ARGV     base of the shard's keys, results kept (ms), log kept (ms), then per arrival: id ('' = a wake-up), entry id,
--          quota ('' = not asked | 'taken' | ms to wait for it)
-- RETURNS  per arrival: 'queued' | 'handed out' (it was admitted before) | 'later' | 'owes' (ask for its quota, then admit it again)
--          | 'hit' (it has ended, with an answer that was kept) | 'followed' (it waits for another one's answer) | 'miss', 'refresh'
--          (queued, and its answer will be kept) | state | 'missing' | 'wrongtype <key>' | 'wake'
-- INVARIANT a pending task is in `in`, in a backlog, in `later`, behind another one, or handed out.
local arrivals, later = KEYS[1], KEYS[2]
local base, kept_ms, log_kept_ms = ARGV[1], ARGV[2], ARGV[3]

-- USES clock, types, shard, terms, fair, flight, task, cache, groups

local AGAIN_MS = 10000

-- Its verdict, and whether its entry stays to come again.
local function admit(id, quota)
  if id == '' then return 'wake' end
  local task = find(id)
  if not task then
    local key = base .. 'task:' .. id
    return is(key, 'hash') and 'missing' or 'wrongtype ' .. key
  end
  if task.state ~= 'pending' then return task.state end
  local wrong = foreign(task)
  if wrong then
    redis.call('ZADD', later, now_ms + AGAIN_MS, id)
    return 'wrongtype ' .. wrong
  end
  if task.epoch ~= '0' or task.owes then  -- a repeat: it was handed out before, or waits for its quota
    if redis.call('SISMEMBER', running_of(task.tenant), id) == 1 then return 'handed out' end
    if redis.call('ZSCORE', later, id) then return 'later' end
  end
  if task.owes then
    if quota == '' then return 'owes', true end
    if quota ~= 'taken' then
      redis.call('ZADD', later, now_ms + quota, id)
      return 'later'
    end
    redis.call('HDEL', task.key, 'owes')
    redis.call('HSET', task.key, 'metered', 1)
  end
  local looked_up = task.cache ~= '' and look_up(task)
  if looked_up == 'hit' or looked_up == 'followed' then return looked_up end
  join_group(task)
  line_up(task)
  return looked_up or 'queued'
end

check_shard()
local verdicts, entries = {}, {}
for item = 0, (#ARGV - 3) / 3 - 1 do
  local arg = 4 + item * 3
  local id, entry, quota = unpack(ARGV, arg, arg + 2)
  local verdict, stays = admit(id, quota)
  verdicts[#verdicts + 1] = verdict
  if not stays then entries[#entries + 1] = entry end
end
if #entries > 0 then
  redis.call('XACK', arrivals, 'scheduler', unpack(entries))
  redis.call('XDEL', arrivals, unpack(entries))
end
return verdicts
