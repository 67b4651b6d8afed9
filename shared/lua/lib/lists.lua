-- lists: the newest tasks of a tenant, and of a session.
-- NEEDS clock; kept_ms, index_length (tasks).
local lists = {}

local function remember(list, id)
  redis.call('ZADD', list, now_ms, id)
  lists[list] = true
end

-- Once a call, however many tasks it has brought.
local function cut_lists()
  for list in pairs(lists) do
    redis.call('ZREMRANGEBYRANK', list, 0, -index_length - 1)
    redis.call('PEXPIRE', list, kept_ms)
  end
end
