#!lua flags=allow-oom
-- dispatch: hand waiting tasks to live workers with room: the lane, then the tenant whose turn it is, then its oldest.
-- KEYS     workers, suspects, later
-- ARGV     base of the shard's keys, most tasks of this call, age at which a worker's beat is too old (ms),
--          crashes that make a task suspect, how full a worker may be that is chosen for its KV cache (share),
--          how long its KV cache is counted on (ms), share of each lane (3, most urgent first)
-- RETURNS  {tasks handed out, tasks that still wait (for their time, too), free slots left}
-- INVARIANT a worker is never handed more than it announced, in all and of the lanes; each hand-out raises the task's epoch.
--          A suspect never runs beside another one: so the next death tells which of them kills workers.
-- The other keys are computed: they are known only here, and share the shard's hash tag.
local workers_key, suspects, later = KEYS[1], KEYS[2], KEYS[3]
local base, most, too_old_ms, suspect_at = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local warm_below, warm_ms, shares = tonumber(ARGV[5]), ARGV[6], {ARGV[7], ARGV[8], ARGV[9]}

-- USES clock, types, terms, fair, workers, paces, heap, turns, shard

local PUT_ASIDE_MS = 500

check_shard()
redis.call('HLEN', suspects)

local function has_no_suspect(worker)
  local id, epoch = string.match(redis.call('HGET', suspects, worker.name) or '', '^(%S+) (%S+)$')
  if not id then return true end
  local state, current = unpack(redis.pcall('HMGET', base .. 'task:' .. id, 'state', 'epoch'))
  return not (current == epoch and (state == 'pending' or state == 'processing'))
end

local function cached_at(digests)
  local keys = {}
  for digest in string.gmatch(digests, '[^,]+') do keys[#keys + 1] = base .. 'prefix:' .. digest end
  return keys
end

-- The worker whose KV cache has the longest beginning of the prompt, as long as it is not loaded.
local function warm(keys, lane)
  if #keys == 0 or warm_below == 0 then return nil end
  for _, name in ipairs(redis.call('MGET', unpack(keys))) do
    for _, worker in ipairs(workers) do
      local load = 1 - (worker.free - 1) / worker.slots
      if worker.name == name and room(worker, lane) > 0 and load <= warm_below then return worker end
    end
  end
end

local function hand_out(lane, turn, id)
  local task = base .. 'task:' .. id
  local state, epoch, crashes, tokens_in, tokens_out, charged, prefix = unpack(redis.pcall('HMGET', task, 'state', 'epoch',
    'crashes', 'tokens_in', 'tokens_out', 'charge', 'prefix'))
  if state ~= 'pending' then return pass_over(turn) end
  local suspected, keys = (tonumber(crashes) or 0) >= suspect_at, cached_at(prefix or '')
  local worker = not suspected and warm(keys, lane.name) or freest(lane.name, suspected and has_no_suspect)
  if not worker then
    redis.call('ZADD', later, now_ms + PUT_ASIDE_MS, id)
    return
  end
  tokens_in, tokens_out = tonumber(tokens_in) or 0, tonumber(tokens_out) or 0
  local tokens = charged and 0 or estimate_of(turn, tokens_in, tokens_out)
  epoch = epoch + 1
  redis.call('HSET', task, 'epoch', epoch, 'charge', charged or tokens .. ' ' .. turn.tenant.weight)
  redis.call('XADD', worker.stream, '*', 't', id, 'e', epoch, 'l', lane.name)
  redis.call('SADD', running_of(turn.name), id)
  if suspected then redis.call('HSET', suspects, worker.name, id .. ' ' .. epoch) end
  for _, key in ipairs(keys) do redis.call('SET', key, worker.name, 'PX', warm_ms) end
  occupy(worker, lane.name)
  hand_over(lane, turn, most_tokens(tokens_in, tokens_out), tokens)
end

while handed_out < most and take(hand_out) do end
write_all_back()
return {handed_out, still_waiting(), free_slots()}
