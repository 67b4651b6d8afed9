#!lua flags=allow-oom
-- dispatch: hand the most urgent waiting tasks to live workers with free slots, the freest worker first.
-- KEYS     workers, suspects, later, backlog of each lane (3, most urgent first)
-- ARGV     base of the shard's keys, most tasks of this call, age at which a worker's beat is too old (ms),
--          crashes that make a task suspect
-- RETURNS  {tasks handed out, tasks still waiting, free slots left}
-- INVARIANT a worker is never handed more than its announced slots; each hand-out raises the task's epoch. A suspect never
--          runs beside another one: so the next death tells which of them kills workers.
-- The task and work keys are computed: they are known only here, and share the shard's hash tag.
local workers_key, suspects, later, lanes = KEYS[1], KEYS[2], KEYS[3], {KEYS[4], KEYS[5], KEYS[6]}
local base, most, too_old_ms, suspect_at = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])

-- USES clock

local PUT_ASIDE_MS = 500

redis.call('HLEN', suspects)  -- raises before the first write if a key holds another type; so do the next lines
redis.call('ZCARD', later)
for _, lane in ipairs(lanes) do redis.call('ZCARD', lane) end
local announced = redis.call('HGETALL', workers_key)
local workers, free = {}, 0
for i = 1, #announced, 2 do
  local beat_ms, slots = string.match(announced[i + 1], '^(%d+) (%d+) ')
  if beat_ms and now_ms - beat_ms <= too_old_ms then
    local stream = base .. 'work:' .. announced[i]
    local credits = slots - redis.call('XLEN', stream)
    if credits > 0 then
      workers[#workers + 1] = {name = announced[i], stream = stream, credits = credits}
      free = free + credits
    end
  end
end

local function has_suspect(worker)
  local id, epoch = string.match(redis.call('HGET', suspects, worker.name) or '', '^(%S+) (%S+)$')
  if not id then return false end
  local state, current = unpack(redis.pcall('HMGET', base .. 'task:' .. id, 'state', 'epoch'))
  return current == epoch and (state == 'pending' or state == 'processing')
end

local function freest(suspected)
  local best
  for _, worker in ipairs(workers) do
    if (not best or worker.credits > best.credits) and worker.credits > 0 and not (suspected and has_suspect(worker)) then
      best = worker
    end
  end
  return best
end

local function hand_out(id)
  local task = base .. 'task:' .. id
  local state, crashes = unpack(redis.pcall('HMGET', task, 'state', 'crashes'))
  if state ~= 'pending' then return end
  local suspected = (tonumber(crashes) or 0) >= suspect_at
  local worker = freest(suspected)
  if not worker then
    redis.call('ZADD', later, now_ms + PUT_ASIDE_MS, id)
    return
  end
  local epoch = redis.call('HINCRBY', task, 'epoch', 1)
  redis.call('XADD', worker.stream, '*', 't', id, 'e', epoch)
  if suspected then redis.call('HSET', suspects, worker.name, id .. ' ' .. epoch) end
  worker.credits, free = worker.credits - 1, free - 1
  return true
end

local handed_out = 0
for _, lane in ipairs(lanes) do
  while free > 0 and handed_out < most do
    local waiting = redis.call('ZPOPMIN', lane, math.min(free, most - handed_out))
    if #waiting == 0 then break end
    for i = 1, #waiting, 2 do
      if hand_out(waiting[i]) then handed_out = handed_out + 1 end
    end
  end
end
local still_waiting = 0
for _, lane in ipairs(lanes) do still_waiting = still_waiting + redis.call('ZCARD', lane) end
return {handed_out, still_waiting, free}
