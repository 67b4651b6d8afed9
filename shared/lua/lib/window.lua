-- window: how much was taken in any span of a given length, counted in buckets. A bucket is named by its end (Unix ms) and
--         counts until all of it has left the span, so no span ever holds more than was counted, whatever the widths.
-- NEEDS clock.
local function read_window(key, limit, length_ms, width_ms)
  local window = {key = key, limit = limit, length_ms = length_ms, used = 0, buckets = {}, counts = {}, gone = {},
    bucket = (math.floor(now_ms / width_ms) + 1) * width_ms}
  local flat = redis.call('HGETALL', key)
  for i = 1, #flat, 2 do
    local bucket, count = tonumber(flat[i]), tonumber(flat[i + 1])
    if bucket > now_ms - length_ms then
      window.used, window.counts[bucket] = window.used + count, count
      table.insert(window.buckets, bucket)
    else
      table.insert(window.gone, flat[i])
    end
  end
  table.sort(window.buckets)
  return window
end

-- Milliseconds until so much of what was taken has left; 0: nothing has to.
local function wait_until_left(window, amount)
  local wait_ms = 0
  for _, bucket in ipairs(window.buckets) do
    if amount <= 0 then break end
    amount, wait_ms = amount - window.counts[bucket], bucket + window.length_ms - now_ms
  end
  return wait_ms
end

local function add_to_window(window, amount)
  local bucket = window.bucket
  if not window.counts[bucket] then
    table.insert(window.buckets, bucket)
    table.sort(window.buckets)  -- a clock that was set back left later ones
  end
  window.used, window.counts[bucket] = window.used + amount, (window.counts[bucket] or 0) + amount
  redis.call('HINCRBY', window.key, bucket, amount)
  redis.call('PEXPIRE', window.key, window.length_ms * 2)
  if #window.gone > 0 then redis.call('HDEL', window.key, unpack(window.gone)) end
  window.gone = {}
end
