#!lua flags=allow-oom
-- take: reserve a request and the tokens it may use, for a tenant and the API key that asks. Also when memory is full, because
--       tasks that wait for their turn must drain.
-- KEYS     reservations, looks, then the windows: requests and tokens of the tenant, requests and tokens of the API key
-- ARGV     rates (JSON, of each window its limit, 0 = none, length in ms, width of a bucket in ms), API key,
--          first look after (ms), kept (ms), then per task: id, tokens
-- RETURNS  per task: 'taken' | 'known' (reserved before) | 'over <window> <used> <wait, ms>' | 'never <window>' (it asks for
--          more than the limit) | 'wrongtype <key>'
-- INVARIANT in no span of a window's length more than its limit is taken. What is refused leaves nothing behind.
local reservations, looks, names = KEYS[1], KEYS[2], {KEYS[3], KEYS[4], KEYS[5], KEYS[6]}
local rates, api_key, look_ms, kept_ms = cjson.decode(ARGV[1]), ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])

-- USES clock, types, window

local broken = not is(reservations, 'hash') and reservations or not is(looks, 'zset') and looks
local windows = {}
for number, rate in ipairs(rates) do
  if rate[1] > 0 then
    if not is(names[number], 'hash') then broken = names[number] end
    windows[number] = not broken and read_window(names[number], unpack(rate)) or nil
  end
end

local function amount_in(number, tokens) return number % 2 == 1 and 1 or tokens end

-- Of the window that keeps it waiting for the longest; nil: none does.
local function refusal(tokens)
  local verdict, longest_ms = nil, -1
  for number, window in pairs(windows) do
    local amount = amount_in(number, tokens)
    if amount > window.limit then return 'never ' .. number end
    local over = window.used + amount - window.limit
    local wait_ms = over > 0 and wait_until_left(window, over) or -1
    if wait_ms > longest_ms then
      verdict, longest_ms = string.format('over %d %d %d', number, window.used, wait_ms), wait_ms
    end
  end
  return verdict
end

local function take(id, tokens)
  if broken then return 'wrongtype ' .. broken end
  if redis.call('HEXISTS', reservations, id) == 1 then return 'known' end
  local refused = refusal(tokens)
  if refused then return refused end
  for number, window in pairs(windows) do add_to_window(window, amount_in(number, tokens)) end
  local of_tenant, of_key = windows[2] and windows[2].bucket or 0, windows[4] and windows[4].bucket or 0
  redis.call('HSET', reservations, id, string.format('%d %d %d %s', tokens, of_tenant, of_key, api_key))
  redis.call('ZADD', looks, now_ms + look_ms, id)
  return 'taken'
end

local verdicts = {}
for item = 0, (#ARGV - 4) / 2 - 1 do
  local arg = 5 + item * 2
  verdicts[#verdicts + 1] = take(ARGV[arg], tonumber(ARGV[arg + 1]))
end
if broken then return verdicts end

-- What nobody has looked at for so long is not going to be settled: the memory is bounded though no scheduler runs.
local left = redis.call('ZRANGEBYSCORE', looks, '-inf', now_ms - kept_ms, 'LIMIT', 0, 2 * #verdicts)
if #left > 0 then
  redis.call('HDEL', reservations, unpack(left))
  redis.call('ZREM', looks, unpack(left))
end
redis.call('PEXPIRE', reservations, kept_ms)
redis.call('PEXPIRE', looks, kept_ms)
return verdicts
