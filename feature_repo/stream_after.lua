-- Makes the stream's next ids come after ARGV[1], a stream id; nothing where they do already.
-- KEYS: stream.
if redis.call('EXISTS', KEYS[1]) == 0 then  -- an empty stream can be made only with a group
  redis.call('XGROUP', 'CREATE', KEYS[1], 'none', '$', 'MKSTREAM')
  redis.call('XGROUP', 'DESTROY', KEYS[1], 'none')
end
local last = redis.call('XINFO', 'STREAM', KEYS[1])
for i = 1, #last, 2 do
  if last[i] == 'last-generated-id' then last = last[i + 1] break end
end
local a, b = string.match(last, '(%d+)-(%d+)')
local c, d = string.match(ARGV[1], '(%d+)-(%d+)')
if tonumber(a) < tonumber(c) or (a == c and tonumber(b) < tonumber(d)) then
  redis.call('XSETID', KEYS[1], ARGV[1])
end
return 1
