-- cache: a task that waits gets the answer of another one that asked the same.
-- NEEDS clock, types, shard, fair, flight, task; base.
-- Larger results are read from the hash (INLINE_RESULT_BYTES of shared/messages.py).
local INLINE_BYTES = 65536

-- End a waiting task with the answer of one that has completed. `how`: 'hit' or 'followed'. Bytes of the answer; nil: it is gone.
-- What the other's end says behind its state is said again, such as usage and finish reason; that it was streamed is not.
-- A response of the Responses API is known by its task, so in this one's answer it bears this one's id.
local function answer(task, source, how)
  local status, result, finished = unpack(redis.call('HMGET', source.key, 'status', 'result', 'finished'))
  local rest = source.state == 'completed' and result and string.match(finished or '',
    '^{"type":"finished%.v1","attempt":%d+,"last":%d+,"state":"completed","status":%d+(.*)$')
  if not rest then return nil end
  rest = string.gsub(string.gsub(rest, '^,"streamed":%a+', ''), '^,"cache":"%a+"', '')
  local theirs, ours = string.gsub('"resp_' .. source.id .. '"', '%p', '%%%0'), '"resp_' .. task.id .. '"'
  result, rest = string.gsub(result, theirs, ours), string.gsub(rest, theirs, ours)
  local told = string.match(rest, '^,"result":') or string.match(rest, '^,"content_type":')  -- what is not JSON stays in the hash
  if #result <= INLINE_BYTES and not told then rest = ',"result":' .. result .. rest end
  task.served, task.last = true, 0
  redis.call('HSET', task.key, 'served_from', source.id, 'cache_use', how)
  end_task(task, 'completed', status, result, string.format('{"type":"finished.v1","attempt":%d,"last":0,"state":"completed",' ..
    '"status":%d,"cache":"%s"', task.attempt, status, how) .. rest, 0)
  return #result
end

-- For a task that is about to be put into the waiting order. 'hit': it has ended | 'followed': it waits for another one's end
-- | 'miss', 'refresh': it runs, and others may follow it | nil: it has nothing to do with the cache, or has run before.
local function look_up(task)
  local digest, _, wish = wish_of(task)
  if not digest or task.attempt > 0 then return nil end
  if redis.call('ZSCORE', backlog_of(task.lane, task.tenant), task.id) then return wish == 'use' and 'miss' or 'refresh' end
  local kept = wish == 'use' and redis.call('GET', answer_of(digest))
  local source = kept and find(kept)
  if source and answer(task, source, 'hit') then return 'hit' end
  local leader_id = redis.call('GET', flight_of(digest))
  local leader = leader_id and leader_id ~= task.id and find(leader_id)
  if leader and (leader.state == 'pending' or leader.state == 'processing')
    and (URGENCY[leader.lane] or 0) <= (URGENCY[task.lane] or 0) then
    follow(task, digest)
    return 'followed'
  end
  if leader_id ~= task.id then lead(task, digest) end
  return wish == 'use' and 'miss' or 'refresh'
end
