#!lua flags=allow-oom
-- group: make a group that is given every entry of a stream from the first one, unless it stands.
-- KEYS     stream
-- ARGV     group
-- RETURNS  'made' | 'stands'
-- INVARIANT a group that stands is left where it is.
local stream = KEYS[1]
local group = ARGV[1]

local made = redis.pcall('XGROUP', 'CREATE', stream, group, '0', 'MKSTREAM')
if made.ok then return 'made' end
if string.find(made.err, 'BUSYGROUP', 1, true) then return 'stands' end
return made
