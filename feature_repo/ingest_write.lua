-- Writes what one micro-batch changed, and moves the watermark: all of it, or nothing if another writer moved the
-- watermark since.
-- KEYS: watermark, change feed, buckets of indexes, then the rows. ARGV: expected watermark, new watermark, number of
-- changed items, those items, number of buckets, for each bucket how many entities and those, then the rows (see
-- write_rows in row_order.lua).
-- Returns how many rows were written, or -1 if fenced off.
if (redis.call('GET', KEYS[1]) or '0') ~= ARGV[1] then return -1 end
local items = tonumber(ARGV[3])
local buckets, at = tonumber(ARGV[4 + items]), 5 + items
for i = 3, 2 + buckets do
  local last = at + tonumber(ARGV[at])
  for j = at + 1, last do
    redis.call('HSET', KEYS[i], ARGV[j], '')
  end
  at = last + 1
end
local written = write_rows(3 + buckets, at)
if items > 0 then
  local time = redis.call('TIME')
  local ms = tostring(time[1]) .. string.format('%03d', math.floor(tonumber(time[2]) / 1000))
  for i = 4, 3 + items do
    redis.call('ZADD', KEYS[2], ms, ARGV[i])
  end
end
redis.call('SET', KEYS[1], ARGV[2])
return written
