-- Does one part of writing a micro-batch, or nothing if another writer moved the watermark since: writes rows, puts
-- items into the change feed, moves the watermark (which parts in which order: ingest_write.py).
-- KEYS: watermark, change feed, then the rows. ARGV: expected watermark, new watermark ('' where it stays), number of
-- changed items, those items, then the rows (see write_rows in row_order.lua).
-- Returns how many rows were written, or -1 if fenced off.
if (redis.call('GET', KEYS[1]) or '0') ~= ARGV[1] then return -1 end
local items = tonumber(ARGV[3])
local written = write_rows(3, 4 + items)
if items > 0 then
  local time = redis.call('TIME')
  local ms = tostring(time[1]) .. string.format('%03d', math.floor(tonumber(time[2]) / 1000))
  for i = 4, 3 + items do
    redis.call('ZADD', KEYS[2], ms, ARGV[i])
  end
end
if ARGV[2] ~= '' then redis.call('SET', KEYS[1], ARGV[2]) end
return written
