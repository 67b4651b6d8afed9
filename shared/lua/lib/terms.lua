-- terms: what those who decide and those who predict must hold alike.
-- NEEDS clock; base.
-- Tokens over share that a lane may be ahead of a less urgent one that waits: a burst goes first, a flood gets its share.
local AHEAD = 20000
-- Tokens of an answer of which nothing is known. shared/submit.py counts the same.
local MADE_UNKNOWN = 256

-- Weight of a tenant, and the most of its tasks that run at once (0: any number), as the scheduler has written them.
local function read_terms(said)
  local weight, cap = string.match(said or '', '^(%S+) (%S+)$')
  return tonumber(weight) or 1, tonumber(cap) or 0
end

local terms = {}
local function terms_of(tenant)
  if not terms[tenant] then
    local own, all = unpack(redis.call('HMGET', base .. 'tenants', tenant, '*'))
    terms[tenant] = {read_terms(own or all)}
  end
  return unpack(terms[tenant])
end
