-- Removes rows of a hash whose feature time is before a moment, looking at each again: it may have changed since it was
-- found.
-- KEYS: the hash. ARGV: the moment (µs, 8 bytes, little-endian), then the fields.
-- Returns how many were removed.
local low, high = struct.unpack('<I4i4', ARGV[1])
local removed = 0
for i = 2, #ARGV do
  local row = redis.call('HGET', KEYS[1], ARGV[i])
  if row and #row >= 24 then
    local a, b = struct.unpack('<I4i4', row, 9)
    if b < high or (b == high and a < low) then
      removed = removed + redis.call('HDEL', KEYS[1], ARGV[i])
    end
  end
end
return removed
