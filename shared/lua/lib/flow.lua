-- flow: lanes as fluids that share the slots of a shard: what eta.lua estimates with. It asks Redis nothing.
-- NEEDS clock, terms; base.
-- A lane with fewer waiting tasks than it starts in so many seconds keeps up: its pace is that of what comes, and goes on.
-- With more of them it is the pace that its share permits, and ends with them.
local ETA_KEEPS_UP_S = 2

-- Work of each lane that goes before all of less urgent ones, in ms of a slot.
local function eta_ahead(shard, own, waiting, work, tokens)
  local tags, least, of_others, first = shard.tags, math.huge, math.huge, {}
  for i = 1, 3 do
    if i ~= own and waiting[i] > 0 then of_others = math.min(of_others, tags[i]) end
  end
  local own_tag = waiting[own] == 0 and of_others < math.huge and math.max(tags[own], of_others) or tags[own]
  least = math.min(own_tag, of_others)
  for i = 1, 3 do
    local tag = i == own and own_tag or tags[i]
    local counts = i == own or waiting[i] > 0
    first[i] = counts and math.min(work[i], math.max(0, least + AHEAD - tag) * shard.shares[i] / tokens * shard.runs[i]) or 0
  end
  return first
end

-- How long until `due` tasks of a lane have started, and how many of each lane have by then. Lanes that wait share the slots,
-- as soon as the more urgent ones are far enough ahead; one that has nothing waiting takes what comes, and no lane is left with less than its share.
local function eta_flow(shard, own, due, waiting, left, tokens)
  local work, loads, started, wait_ms = {}, {}, {0, 0, 0}, 0
  for i = 1, 3 do
    work[i] = left[i] * shard.runs[i]
    loads[i] = waiting[i] <= shard.paces[i] * ETA_KEEPS_UP_S and shard.paces[i] * shard.runs[i] / 1000 or 0
  end
  work[own] = math.max(0, due) * shard.runs[own]
  local first = eta_ahead(shard, own, waiting, work, tokens)
  while work[own] > 0 do
    local share, all_shares, taken, rates, done, step_ms, head = 0, 0, 0, {}, own, math.huge, nil
    for i = own, 1, -1 do
      if work[i] > 0 and first[i] > 0 then head = i end
    end
    local last = head or 3
    for i = 1, 3 do
      if work[i] > 0 and i <= last then share = share + shard.shares[i] end
      if (work[i] > 0 and i <= last) or (work[i] == 0 and loads[i] > 0) then all_shares = all_shares + shard.shares[i] end
    end
    for i = 1, 3 do
      if work[i] == 0 and i < own then taken = taken + loads[i] end
      if work[i] == 0 and i > own then taken = taken + math.min(loads[i], shard.slots * shard.shares[i] / all_shares) end
    end
    local room = math.max(shard.slots - taken, shard.slots * share / all_shares)
    for i = 1, 3 do
      rates[i] = work[i] > 0 and i <= last and room * shard.shares[i] / share or 0
      if i == own then rates[i] = math.min(rates[i], shard.limits[i] or rates[i]) end
      if rates[i] > 0 and work[i] / rates[i] < step_ms then done, step_ms = i, work[i] / rates[i] end
    end
    if head and first[head] / rates[head] < step_ms then
      done, step_ms = 0, first[head] / rates[head]
      first[head] = 0
    end
    for i = 1, 3 do
      if rates[i] > 0 then started[i] = started[i] + rates[i] * step_ms / shard.runs[i] end
      work[i] = i ~= done and math.max(0, work[i] - rates[i] * step_ms) or 0
      first[i] = math.max(0, first[i] - rates[i] * step_ms)
    end
    wait_ms = wait_ms + step_ms
  end
  return wait_ms, started
end
