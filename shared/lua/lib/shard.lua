-- shard: the keys that a shard has once, looked at before anything is written.
-- NEEDS types; base.

-- Raises before the first write if a key of the shard holds another type. One command looks at all sorted sets: with one that
-- does not exist it has nothing to intersect.
local function check_shard()
  local sets = {}
  for _, name in ipairs({'nothing', 'leases', 'expiry', 'attached', 'later'}) do sets[#sets + 1] = base .. name end
  for _, lane in ipairs({'interactive', 'normal', 'batch'}) do
    sets[#sets + 1] = base .. 'turns:' .. lane
    sets[#sets + 1] = base .. 'rested:' .. lane
  end
  redis.call('ZINTERCARD', #sets, unpack(sets))
  for _, name in ipairs({'waiting', 'fair', 'tenants', 'means', 'held', 'paces'}) do redis.call('HLEN', base .. name) end
  redis.call('XLEN', base .. 'in')
  redis.call('XLEN', base .. 'dead')
end
