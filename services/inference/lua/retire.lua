#!lua flags=allow-oom
-- retire: a worker that stops hands back what it has not started, at last also what it runs, and is forgotten.
-- KEYS     work, workers, suspects, in
-- ARGV     base of the shard's keys, results kept (ms), log kept (ms), worker, nonce, entries this call looks at,
--          1 = running tasks too
-- RETURNS  {tasks handed back, entries left}
-- INVARIANT a worker is known, with no slots, as long as its stream holds anything: else nobody would look at what it left.
--          A task handed back has a higher epoch and is waiting at its old place; handing back is not charged as a crash.
-- The task keys are computed: they are known only here, and share the shard's hash tag.
local work, workers, suspects, arrivals = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local base, kept_ms, log_kept_ms = ARGV[1], ARGV[2], ARGV[3]
local worker, nonce, most, running = ARGV[4], ARGV[5], ARGV[6], ARGV[7] == '1'

-- USES clock, types, shard, terms, fair, flight, task, entries

check_shard()
redis.call('XLEN', work)
redis.call('HLEN', suspects)
redis.call('HLEN', workers)
local handed_back = 0
for _, entry in ipairs(redis.call('XRANGE', work, '-', '+', 'COUNT', most)) do
  local hand = fields_of(entry)
  local task = find(hand.t)
  local current = task and task.epoch == hand.e
  local mine = current and task.state == 'processing' and task.owner == nonce
  if mine and running and task.stop then
    if not foreign(task) then end_as(task, task.stop) end
  elseif ((current and task.state == 'pending') or (mine and running)) and not foreign(task) then
    requeue(task, 'drained')
    handed_back = handed_back + 1
  end
  if running or not mine then clear(work, entry[1]) end
end
local left = redis.call('XLEN', work)
if left == 0 then
  forget_worker(worker, work)
else
  local announced = redis.call('HGET', workers, worker) or now_ms .. ' 0 0 0 {}'
  redis.call('HSET', workers, worker, (string.gsub(announced, '^(%d+) %d+ %d+ %d+ ', '%1 0 0 0 ')))
end
if handed_back > 0 then redis.call('XADD', arrivals, '*', 'wake', 'retire') end
return {handed_back, left}
