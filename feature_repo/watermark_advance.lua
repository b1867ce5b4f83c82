-- Moves the watermark forward to ARGV[1] (decimal seq) unless it stands there or later; returns where it stands.
-- ARGV[2] is '1' where the watermark is to be moved backwards too (all rows are new).
-- KEYS: watermark.
local now, new = redis.call('GET', KEYS[1]) or '0', ARGV[1]
if ARGV[2] ~= '1' and (#now > #new or (#now == #new and now >= new)) then return now end
redis.call('SET', KEYS[1], new)
return new
