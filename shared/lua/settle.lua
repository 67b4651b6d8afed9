#!lua flags=allow-oom
-- settle: end reservations with what their tasks have used, or put off the next look at them.
-- KEYS     reservations, looks, tokens of the tenant
-- ARGV     begin of the names of the tokens of API keys, length of a window (ms), width of a bucket (ms), next look after (ms),
--          kept (ms), then per task: id, tokens used ('': put off the look, the task goes on)
-- RETURNS  per task: 'settled' | 'later' | 'unknown' (settled before, or never reserved) | 'wrongtype <key>'
-- INVARIANT a reservation ends once. What was not used is given back to the bucket it was taken from, and to no other: only
--           there it counted. What was used beyond it is charged there, or to the present if that has left the window.
local reservations, looks, of_tenant = KEYS[1], KEYS[2], KEYS[3]
local of_keys, length_ms, width_ms, look_ms, kept_ms = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], ARGV[5]

-- USES clock, types

local function change(window, bucket, difference)
  local counted = tonumber(redis.call('HGET', window, bucket)) or 0
  if bucket <= now_ms - length_ms or counted == 0 then
    if difference <= 0 then return end
    bucket = (math.floor(now_ms / width_ms) + 1) * width_ms
  end
  if counted + difference > 0 then
    redis.call('HINCRBY', window, bucket, difference)
    redis.call('PEXPIRE', window, length_ms * 2)
  else
    redis.call('HDEL', window, bucket)
  end
end

local function settle(id, used)
  if not is(reservations, 'hash') then return 'wrongtype ' .. reservations end
  if not is(looks, 'zset') then return 'wrongtype ' .. looks end
  local reserved, bucket, key_bucket, api_key =
    string.match(redis.call('HGET', reservations, id) or '', '^(%d+) (%d+) (%d+) (.*)$')
  if not reserved then return 'unknown' end
  local of_key = of_keys .. api_key
  for window, place in pairs({[of_tenant] = bucket, [of_key] = key_bucket}) do
    if place ~= '0' and not is(window, 'hash') then return 'wrongtype ' .. window end
  end
  if used == '' then
    redis.call('ZADD', looks, now_ms + look_ms, id)
    redis.call('PEXPIRE', looks, kept_ms)
    redis.call('PEXPIRE', reservations, kept_ms)
    return 'later'
  end
  for window, place in pairs({[of_tenant] = bucket, [of_key] = key_bucket}) do
    if place ~= '0' then change(window, tonumber(place), tonumber(used) - tonumber(reserved)) end
  end
  redis.call('HDEL', reservations, id)
  redis.call('ZREM', looks, id)
  return 'settled'
end

local verdicts = {}
for item = 0, (#ARGV - 5) / 2 - 1 do
  local arg = 6 + item * 2
  verdicts[#verdicts + 1] = settle(ARGV[arg], ARGV[arg + 1])
end
return verdicts
