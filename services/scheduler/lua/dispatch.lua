#!lua flags=allow-oom
-- dispatch: hand the most urgent waiting tasks to live workers with free slots, the freest worker first.
-- KEYS     workers, backlog of each lane (3, most urgent first)
-- ARGV     base of the shard's keys, most tasks of this call, age at which a worker's beat is too old (ms)
-- RETURNS  {tasks handed out, tasks still waiting, free slots left}
-- INVARIANT a worker's stream is never deeper than its announced slots; each hand-out raises the task's epoch.
-- The task and work keys are computed: they are known only here, and share the shard's hash tag.
local workers_key = KEYS[1]
local base, most, too_old_ms = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local announced = redis.call('HGETALL', workers_key)
for lane = 2, 4 do redis.call('ZCARD', KEYS[lane]) end  -- raises before the first write if a key holds another type
local workers, free = {}, 0
for i = 1, #announced, 2 do
  local beat_ms, slots = string.match(announced[i + 1], '^(%d+) (%d+) ')
  if beat_ms and now_ms - beat_ms <= too_old_ms then
    local stream = base .. 'work:' .. announced[i]
    local credits = slots - redis.call('XLEN', stream)
    if credits > 0 then
      workers[#workers + 1] = {stream = stream, credits = credits}
      free = free + credits
    end
  end
end

local function freest()
  local best = workers[1]
  for i = 2, #workers do
    if workers[i].credits > best.credits then best = workers[i] end
  end
  return best
end

local handed_out = 0
for lane = 2, 4 do
  while free > 0 and handed_out < most do
    local waiting = redis.call('ZPOPMIN', KEYS[lane], math.min(free, most - handed_out))
    if #waiting == 0 then break end
    for i = 1, #waiting, 2 do
      local id = waiting[i]
      local task = base .. 'task:' .. id
      if redis.pcall('HGET', task, 'state') == 'pending' then
        local worker = freest()
        local epoch = redis.call('HINCRBY', task, 'epoch', 1)
        redis.call('XADD', worker.stream, '*', 't', id, 'e', epoch)
        worker.credits, free, handed_out = worker.credits - 1, free - 1, handed_out + 1
      end
    end
  end
end
local still_waiting = 0
for lane = 2, 4 do still_waiting = still_waiting + redis.call('ZCARD', KEYS[lane]) end
return {handed_out, still_waiting, free}
