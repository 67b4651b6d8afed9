#!lua flags=allow-oom
-- reap: take tasks back from workers that were silent for longer than their lease.
-- KEYS     leases, workers, suspects
-- ARGV     base of the shard's keys, results kept (ms), log kept (ms), most tasks of this call,
--          age at which a worker's beat is too old (ms), crashes at which a task is quarantined
-- RETURNS  {running tasks taken back, tasks taken back that had not started, workers removed, tasks quarantined}
-- INVARIANT a task taken back has a higher epoch, so whoever held it can change nothing afterwards.
-- The task and work keys are computed: they are known only here, and share the shard's hash tag.
local leases, workers_key, suspects = KEYS[1], KEYS[2], KEYS[3]
local base, kept_ms, log_kept_ms, most = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local too_old_ms, crash_limit = tonumber(ARGV[5]), tonumber(ARGV[6])

-- USES clock, types, shard, terms, fair, flight, task, entries

check_shard()
redis.call('HLEN', suspects)
local announced = redis.call('HGETALL', workers_key)
local lost, quarantined = 0, 0
for _, id in ipairs(redis.call('ZRANGEBYSCORE', leases, '-inf', now_ms, 'LIMIT', 0, most)) do
  local task = find(id)
  if not task or task.state ~= 'processing' then
    redis.call('ZREM', leases, id)
  elseif not foreign(task) then
    lost = lost + 1
    if survive(task, crash_limit, 'lost') == 'quarantined' then quarantined = quarantined + 1 end
  end
end

local held = redis.call('HGETALL', suspects)
for i = 1, #held, 2 do
  local id, epoch = string.match(held[i + 1], '^(%S+) (%S+)$')
  local task = id and find(id)
  if not task or task.epoch ~= epoch or not (task.state == 'pending' or task.state == 'processing') then
    redis.call('HDEL', suspects, held[i])
  end
end

local unstarted, removed = 0, 0
for i = 1, #announced, 2 do
  local beat_ms = string.match(announced[i + 1], '^(%d+) ')
  if now_ms - (beat_ms or 0) > too_old_ms then
    local stream = base .. 'work:' .. announced[i]
    for _, entry in ipairs(redis.call('XRANGE', stream, '-', '+', 'COUNT', most)) do
      local hand = fields_of(entry)
      local task = find(hand.t)
      local current = task and task.epoch == hand.e
      local stays = current and (task.state == 'processing' or (task.state == 'pending' and foreign(task)))
      if current and task.state == 'pending' and not stays then
        requeue(task, 'lost')
        unstarted = unstarted + 1
      end
      if not stays then clear(stream, entry[1]) end
    end
    if redis.call('XLEN', stream) == 0 then
      forget_worker(announced[i], stream)
      removed = removed + 1
    end
  end
end
if lost + unstarted > 0 then redis.call('XADD', base .. 'in', '*', 'wake', 'reap') end
return {lost, unstarted, removed, quarantined}
