#!lua
-- submit: make tasks, once each. The only script that is refused when memory is full, with reserve.
-- KEYS     in, later, then per task: task, tenant index, session index, bus
-- ARGV     base of the shard's keys, results kept (ms), log kept (ms), backlog limit (tasks), index length (tasks),
--          waiter's lease (ms), then per task: id, lane, tenant, session, reply_to, attached ('1' or ''), expires in (ms),
--          hurried ('1' = refused if it would not start by then), starts in (ms), tokens in, tokens out (0 = not said),
--          queued limit (tasks, 0 = none), batch limit (tokens, 0 = none), metered ('1' or ''), owes ('1' or ''), tells ('1' or ''),
--          cache, prefix, spec, body, pending event, kept until (Unix ms; '' = for as long as results are)
-- RETURNS  per task: 'new' | state of the task that has this id already | 'full' | 'tenant_full' | 'batch_full'
--          | 'late <starts in about so many ms>' | 'wrongtype <key>'
-- INVARIANT a task's hash, its place in `in` or `later`, and its deadline are made together; a repeat makes none. A task that
--          was cancelled before it came is made, and ends in the same step.
local arrivals, later = KEYS[1], KEYS[2]
local base, kept_ms, log_kept_ms = ARGV[1], ARGV[2], ARGV[3]
local backlog_limit, index_length, attached_ms = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])

-- USES clock, types, shard, terms, fair, flight, task, flow, paces, eta, limits, lists

local NAMES = {'id', 'lane', 'tenant', 'session', 'reply_to', 'attached', 'expires_ms', 'hurried', 'starts_ms', 'tokens_in',
  'tokens_out', 'queued_limit', 'batch_limit', 'metered', 'owes', 'tells', 'cache', 'prefix', 'spec', 'body', 'pending',
  'kept_until_ms'}
local KEPT = {'lane', 'tenant', 'session', 'reply_to', 'tokens_in', 'tokens_out', 'spec', 'body', 'metered', 'owes',
  'tells', 'cache', 'prefix', 'kept_until_ms'}

-- What keeps it from being made; true as the second answer: it was cancelled before it came.
local function refusal(asked, key, tenant_index, session_index, bus)
  local kind, cancelled = redis.call('TYPE', key).ok, false
  if kind == 'hash' then
    local state, tombstone = unpack(redis.call('HMGET', key, 'state', 'tombstone'))
    if not tombstone then return state or 'wrongtype ' .. key end
    cancelled = true
  elseif kind ~= 'none' then return 'wrongtype ' .. key end
  local wrong = misused(asked, tenant_index, session_index, bus) or cancelled and unendable(asked, bus)
  return wrong and 'wrongtype ' .. wrong or not cancelled and over_limit(asked), cancelled
end

local function make(asked, key, deadline_ms)
  local fields = {'state', 'pending', 'epoch', 0, 'created_at_ms', now_ms, 'deadline_ms', deadline_ms, 'eta_ms',
    asked.wait_ms or -1}
  for _, name in ipairs(KEPT) do
    if asked[name] ~= '' then fields[#fields + 1], fields[#fields + 2] = name, asked[name] end
  end
  redis.call('HSET', key, unpack(fields))
end

local function submit(asked, key, tenant_index, session_index, bus)
  local refused, cancelled = refusal(asked, key, tenant_index, session_index, bus)
  if refused then return refused end
  local id, starts_ms, deadline_ms = asked.id, tonumber(asked.starts_ms), now_ms + asked.expires_ms
  if cancelled then redis.call('DEL', key) end
  make(asked, key, deadline_ms)
  if starts_ms > 0 then redis.call('HSET', key, 'place', now_ms + starts_ms) end
  remember(tenant_index, id)
  if asked.session ~= '' then
    remember(session_index, id)
    redis.call('XADD', bus, 'MINID', '~', now_ms - 120000, '*', 't', id, 's', asked.session, 'e', asked.pending)
  end
  if cancelled then
    count_one(find(id), 1)
    end_as(find(id), 'cancelled')
    return 'cancelled'
  end
  count_made(asked)
  if starts_ms > 0 then redis.call('ZADD', later, now_ms + starts_ms, id) else arrive(id) end
  redis.call('ZADD', base .. 'expiry', deadline_ms, id)
  if asked.attached ~= '' then redis.call('ZADD', base .. 'attached', now_ms + attached_ms, id) end
  return 'new'
end

check_shard()
local verdicts = {}
for item = 0, (#ARGV - 6) / 22 - 1 do
  local key, arg, asked = 3 + item * 4, 7 + item * 22, {}
  for i, name in ipairs(NAMES) do asked[name] = ARGV[arg + i - 1] end
  verdicts[#verdicts + 1] = submit(asked, unpack(KEYS, key, key + 3))
end
write_counts()
cut_lists()
return verdicts
