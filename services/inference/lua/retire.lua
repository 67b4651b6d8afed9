#!lua flags=allow-oom
-- retire: a worker that stops hands back what it has not started, at last also what it runs, and is forgotten.
-- KEYS     work, workers, leases, in, backlog of each lane (3)
-- ARGV     worker, nonce, base of the shard's keys, entries this call looks at, 1 = running tasks too
-- RETURNS  {tasks handed back, entries left}
-- INVARIANT a task handed back has a higher epoch and is waiting at its old place; handing back is not charged as a crash.
-- The task keys are computed: they are known only here, and share the shard's hash tag.
local work, workers, leases, arrivals = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local backlogs = {interactive = KEYS[5], normal = KEYS[6], batch = KEYS[7]}
local worker, nonce, base, most, running = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5] == '1'

redis.call('XLEN', work)  -- raises before the first write if a key holds another type; so do the next lines
redis.call('XLEN', arrivals)
redis.call('ZCARD', leases)
for _, backlog in pairs(backlogs) do redis.call('ZCARD', backlog) end
local handed_back = 0
redis.call('HDEL', workers, worker)
for _, entry in ipairs(redis.call('XRANGE', work, '-', '+', 'COUNT', most)) do
  local id, epoch = entry[2][2], entry[2][4]
  local task = base .. 'task:' .. id
  local state, current, owner, lane, created_at_ms = unpack(redis.pcall('HMGET', task,
    'state', 'epoch', 'owner', 'lane', 'created_at_ms'))
  local mine = state == 'processing' and current == epoch and owner == nonce
  if (state == 'pending' and current == epoch) or (mine and running) then
    redis.call('HINCRBY', task, 'epoch', 1)
    redis.call('HSET', task, 'state', 'pending')
    redis.call('HDEL', task, 'owner', 'worker')
    redis.call('ZREM', leases, id)
    redis.call('ZADD', backlogs[lane], 'NX', created_at_ms, id)
    handed_back = handed_back + 1
  end
  if running or not mine then redis.call('XDEL', work, entry[1]) end
end
local left = redis.call('XLEN', work)
if left == 0 then redis.call('DEL', work) end
if handed_back > 0 then redis.call('XADD', arrivals, '*', 'wake', 'retire') end
return {handed_back, left}
