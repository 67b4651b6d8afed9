#!lua flags=allow-oom
-- file_mark: fields of a file's record get other values: it is whole, or it is to go.
-- KEYS     record
-- ARGV     per field: name, value
-- RETURNS  'ok' | 'unknown' (there is no such file) | 'wrongtype <key>'
-- INVARIANT a file that is gone does not come back.
local record = KEYS[1]
local fields = ARGV

-- USES types

if not is(record, 'hash') then return 'wrongtype ' .. record end
if redis.call('EXISTS', record) == 0 then return 'unknown' end
redis.call('HSET', record, unpack(fields))
return 'ok'
