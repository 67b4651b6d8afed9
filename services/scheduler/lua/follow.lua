#!lua flags=allow-oom
-- follow: see to the tasks that waited for the answer of one that has ended: they get it, or the first of them leads.
-- KEYS     followers, flight, in
-- ARGV     base of the shard's keys, results kept (ms), log kept (ms), digest, id of the task that has ended, most tasks of this
--          call, most bytes of answers of this call (about)
-- RETURNS  {tasks that got the answer, tasks that lead and were put into `in` (0 or 1), 1 = call again: more may wait}
-- INVARIANT who follows has a leader that has not ended, an entry in `in` that sees to it, or a place of its own. Nobody gets
--          an answer that was there before they asked for a new one.
-- The task keys are computed: they are known only here, and share the shard's hash tag.
local followers, flight, arrivals = KEYS[1], KEYS[2], KEYS[3]
local base, kept_ms, log_kept_ms = ARGV[1], ARGV[2], ARGV[3]
local digest, ended_id, most, most_bytes = ARGV[4], ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7])

-- USES clock, types, shard, terms, fair, flight, task, cache

local function send_in(id) redis.call('XADD', arrivals, '*', 't', id) end

-- nil: it does not follow any more; nor does one that cannot end here, because a key of it is not ours: it runs by itself.
local function find_follower(id)
  local task = find(id)
  if task and task.state == 'pending' and not foreign(task) then return task end
  redis.call('ZREM', followers, id)
  if task and task.state == 'pending' then
    redis.call('HDEL', task.key, 'follows')
    send_in(id)
  end
end

local function is_led_already()
  local leader = find(redis.call('GET', flight) or '')
  return leader and (leader.state == 'pending' or leader.state == 'processing')
end

-- How many got it; second: there may be more that wait for it.
local function hand_on(ended)
  local answered, bytes = 0, 0
  local ended_at_ms = tonumber(redis.call('HGET', ended.key, 'finished_at_ms')) or 0
  local page = redis.call('ZRANGE', followers, 0, most - 1)
  for _, id in ipairs(page) do
    if bytes >= most_bytes then return answered, true end
    local task = find_follower(id)
    if task and task.created_at_ms <= ended_at_ms then
      local size = answer(task, ended, 'followed')
      if not size then return answered, false end
      answered, bytes = answered + 1, bytes + size
    end
  end
  return answered, answered > 0 and #page == most
end

local function promote()
  if is_led_already() then return 0, false end
  local page = redis.call('ZRANGE', followers, 0, most - 1)
  for _, id in ipairs(page) do
    local task = find_follower(id)
    if task then
      lead(task, digest)
      send_in(id)
      return 1, false
    end
  end
  return 0, #page == most
end

check_shard()
redis.call('ZCARD', followers)
redis.call('GET', flight)
local ended, answered, promoted, more = find(ended_id), 0, 0, false
if ended and (ended.state == 'pending' or ended.state == 'processing') then return {0, 0, 0} end
if ended and ended.state == 'completed' then answered, more = hand_on(ended) end
if not more then promoted, more = promote() end
return {answered, promoted, more and 1 or 0}
