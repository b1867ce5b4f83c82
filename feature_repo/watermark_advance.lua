-- Moves the watermark forward to ARGV[1] (decimal seq) unless it stands there or later; returns where it stands.
-- The stream's next ids are made to come after it: ARGV[2] is the watermark as a stream id.
-- ARGV[3] is '1' where the watermark is to be moved backwards too (all rows are new).
-- KEYS: watermark, stream.
local now, new = redis.call('GET', KEYS[1]) or '0', ARGV[1]
if ARGV[3] ~= '1' and (#now > #new or (#now == #new and now >= new)) then return now end
if redis.call('EXISTS', KEYS[2]) == 0 then  -- an empty stream can be made only with a group
  redis.call('XGROUP', 'CREATE', KEYS[2], 'none', '$', 'MKSTREAM')
  redis.call('XGROUP', 'DESTROY', KEYS[2], 'none')
end
local last = redis.call('XINFO', 'STREAM', KEYS[2])
for i = 1, #last, 2 do
  if last[i] == 'last-generated-id' then last = last[i + 1] break end
end
local a, b = string.match(last, '(%d+)-(%d+)')
local c, d = string.match(ARGV[2], '(%d+)-(%d+)')
if tonumber(a) < tonumber(c) or (a == c and tonumber(b) < tonumber(d)) then
  redis.call('XSETID', KEYS[2], ARGV[2])
end
redis.call('SET', KEYS[1], new)
return new
