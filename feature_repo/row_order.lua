-- Row writes that never replace a newer row: (seq, feature time) decides (header: docs/packed-rows.md).
-- Prepended to row_write.lua and ingest_write.lua.
-- Lua numbers lose integers above 2^53, so 64-bit numbers are compared as two halves.
local function is_newer(old, new)
  if not old or #old < 24 then return false end
  local a, b = struct.unpack('>I4I4', old, 17)  -- seq, big-endian
  local c, d = struct.unpack('>I4I4', new, 17)
  if a ~= c then return a > c end
  if b ~= d then return b > d end
  b, a = struct.unpack('<I4i4', old, 9)  -- feature time, little-endian
  d, c = struct.unpack('<I4i4', new, 9)
  if a ~= c then return a > c end
  return b > d
end

local function write_row(key, row)
  if is_newer(redis.call('GETRANGE', key, 0, 23), row) then return 0 end
  redis.call('SET', key, row)
  return 1
end

local function write_field(key, field, row)
  if is_newer(redis.call('HGET', key, field), row) then return 0 end
  redis.call('HSET', key, field, row)
  return 1
end

-- KEYS from `first` on are row keys: one for each of ARGV[at]'s rows that stand alone, then one for each field of a
-- hash. ARGV from `at` on: how many rows stand alone, those rows, then field and row for each further key.
local function write_rows(first, at)
  local alone, written = tonumber(ARGV[at]), 0
  for i = 1, alone do
    written = written + write_row(KEYS[first + i - 1], ARGV[at + i])
  end
  local argument = at + alone + 1
  for i = first + alone, #KEYS do
    written = written + write_field(KEYS[i], ARGV[argument], ARGV[argument + 1])
    argument = argument + 2
  end
  return written
end

