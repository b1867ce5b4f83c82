-- Row writes that never replace a newer row (header: docs/packed-rows.md): `seq` decides, then, within one layout, the
-- feature time. Prepended to row_write.lua and ingest_write.lua.
-- Commands of Redis cost more than all else here, so many rows are read and written by one.
local call, sub, unpacked = redis.call, string.sub, struct.unpack

-- Lua numbers lose integers above 2^53, so numbers of 64 bits are compared as two halves. Strings are only compared for
-- equality: which is greater would depend on the locale the server was started in.
local function is_newer(old, new)
  if not old or #old < 24 then return false end
  if sub(old, 17, 24) ~= sub(new, 17, 24) then
    local high, low = unpacked('>I4I4', old, 17)
    local new_high, new_low = unpacked('>I4I4', new, 17)
    if high ~= new_high then return high > new_high end
    return low > new_low
  end
  if sub(old, 1, 16) == sub(new, 1, 16) then return false end
  if sub(old, 1, 8) ~= sub(new, 1, 8) then return false end  -- a layout that is no more keeps nothing out
  local low, high = unpacked('<I4i4', old, 9)
  local new_low, new_high = unpacked('<I4i4', new, 9)
  if high ~= new_high then return high > new_high end
  return low > new_low
end

-- Of `n` rows at ARGV[row], named by names[name] (a key or a field) each, return those to be written as name, row, name,
-- row, ...; and how many values that are. `old` is what is there.
local function winners(n, names, name, row, old)
  local put, size, best = {}, 0, {}
  for i = 0, n - 1 do
    local key, new = names[name + i], ARGV[row + i]
    if not is_newer(best[key] or old[i + 1], new) then
      best[key] = new
      put[size + 1], put[size + 2] = key, new
      size = size + 2
    end
  end
  return put, size
end

-- KEYS from `first` on are row keys: one for each of ARGV[at]'s rows that stand alone, then one for each hash. ARGV from
-- `at` on: how many rows stand alone, those rows, then for each hash how many fields, those fields, and their rows.
local function write_rows(first, at)
  local alone, written = tonumber(ARGV[at]), 0
  for start = 0, alone - 1, 500 do  -- unpack has a limit
    local n = math.min(alone - start, 500)
    local old = call('MGET', unpack(KEYS, first + start, first + start + n - 1))
    local put, size = winners(n, KEYS, first + start, at + 1 + start, old)
    if size > 0 then call('MSET', unpack(put, 1, size)) end
    written = written + size / 2
  end
  at = at + 1 + alone
  for i = first + alone, #KEYS do
    local n = tonumber(ARGV[at])
    for start = 1, n, 500 do
      local part = math.min(n - start + 1, 500)
      local old = call('HMGET', KEYS[i], unpack(ARGV, at + start, at + start + part - 1))
      local put, size = winners(part, ARGV, at + start, at + n + start, old)
      if size > 0 then call('HSET', KEYS[i], unpack(put, 1, size)) end
      written = written + size / 2
    end
    at = at + 1 + 2 * n
  end
  return written
end

