-- Puts items into the change feed with the time of this very moment: a poll cannot come between clock and write.
-- KEYS: change feed. ARGV: the items.
local time = redis.call('TIME')
local ms = tostring(time[1]) .. string.format('%03d', math.floor(tonumber(time[2]) / 1000))
for i = 1, #ARGV do
  redis.call('ZADD', KEYS[1], ms, ARGV[i])
end
return #ARGV
