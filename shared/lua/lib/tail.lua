-- tail: the last act of a worker on a task: what it has not published yet, and its work entry.
-- NEEDS clock, types, fair, task, entries; work (stream of the worker).

-- For a task that is not the caller's. The entry of one that is handed out and not started is its only place: it stays.
local function fence_off(task, epoch, entry)
  if not (task and task.state == 'pending' and task.epoch == epoch) then clear(work, entry) end
  return 'fenced'
end

-- The chunks first..last join what was published; false: they do not. An overlap was written before, and is left out.
local function add_tail(task, first, last, chunks, journal)
  first, last = tonumber(first), tonumber(last)
  if chunks == '' or last <= task.last then return last == task.last end
  if first ~= task.last + 1 then return false end
  publish(task, chunks, journal)
  if task.last == 0 then redis.call('HSET', task.key, 'first_token_at_ms', now_ms) end
  task.last = last
  redis.call('HSET', task.key, 'last', last)
  return true
end
