-- flight: tasks that ask the same, by the digest of their requests. One of them leads: it runs; the others follow, and wait for
-- its answer. Here: who leads, who follows, and what an end means to the others.
-- NEEDS clock, types; base (of the shard's keys).
local URGENCY = {interactive = 0, normal = 1, batch = 2}

-- Digest, ms that the answer is kept, 'use' or 'refresh'; nil: it has none to do with it.
local function wish_of(task) return string.match(task.cache, '^(%x+) (%d+) (%a+)$') end

local function flight_of(digest) return base .. 'flight:' .. digest end
local function answer_of(digest) return base .. 'cache:' .. digest end
local function followers_of(digest) return base .. 'followers:' .. digest end

-- The key of its flight that holds another type; nil: none does.
local function misplaced(task)
  local digest = wish_of(task)
  if not digest then return nil end
  if not is(flight_of(digest), 'string') then return flight_of(digest) end
  if not is(answer_of(digest), 'string') then return answer_of(digest) end
  if not is(followers_of(digest), 'zset') then return followers_of(digest) end
end

-- Does another task make its answer?
local function is_led(task)
  if not task.follows or misplaced(task) then return false end
  if not redis.call('ZSCORE', followers_of(task.follows), task.id) then return false end
  local leader = redis.call('GET', flight_of(task.follows))
  local state = leader and leader ~= task.id and redis.pcall('HGET', base .. 'task:' .. leader, 'state')
  return state == 'pending' or state == 'processing'
end

local function lead(task, digest)
  local left_ms = math.max(1, math.min(task.deadline_ms - now_ms, 1e12))
  redis.call('SET', flight_of(digest), task.id, 'PX', left_ms)
  if task.follows then
    redis.call('ZREM', followers_of(digest), task.id)
    redis.call('HDEL', task.key, 'follows')
  end
end

-- The most urgent first, and of these the oldest: should the leader fail, it leads.
local function follow(task, digest)
  redis.call('ZADD', followers_of(digest), (URGENCY[task.lane] or 0) * 1e13 + task.created_at_ms, task.id)
  redis.call('HSET', task.key, 'follows', digest)
end

-- The task ends. Its answer is kept, unless it is itself that of another task (`served`); who follows is seen to by the
-- scheduler, page by page: they get the answer, or one of them leads.
local function land(task, state)
  local digest, ttl_ms = wish_of(task)
  if not digest then return end
  local holder, made = redis.call('GET', flight_of(digest)), state == 'completed' and not task.served
  redis.call('ZREM', followers_of(digest), task.id)
  if holder == task.id then redis.call('DEL', flight_of(digest)) end
  if made then redis.call('SET', answer_of(digest), task.id, 'PX', ttl_ms) end
  local left_alone = holder == task.id or (not holder and not task.served)
  if (made or left_alone) and redis.call('EXISTS', followers_of(digest)) == 1 then
    redis.call('XADD', base .. 'in', '*', 'lead', digest, 'of', task.id)
  end
end
