-- Appends entries to the stream, each once: the entry's own id is remembered together with the stream id it got.
-- KEYS: stream, then one key per entry that remembers its id. ARGV: seconds to remember, largest counter within a
-- millisecond that a seq can hold, most entries the stream may have, name of the field (which kind of entry it is),
-- then one payload per entry.
-- Returns for every entry 1 (appended) or 0 (known), and its stream id.
if redis.call('XLEN', KEYS[1]) + #KEYS - 1 > tonumber(ARGV[3]) then
  return redis.error_reply('STREAMFULL the stream holds ' .. redis.call('XLEN', KEYS[1]) .. ' entries: ingest is behind')
end
local answer = {}
for i = 2, #KEYS do
  local known = redis.call('GET', KEYS[i])
  if known then
    answer[#answer + 1] = 0
    answer[#answer + 1] = known
  else
    local payload = ARGV[i + 3]
    local id = redis.call('XADD', KEYS[1], '*', ARGV[4], payload)
    local ms, counter = string.match(id, '(%d+)-(%d+)')
    if tonumber(counter) > tonumber(ARGV[2]) then  -- the clock stands still or was set back: go on a millisecond later
      redis.call('XDEL', KEYS[1], id)
      id = redis.call('XADD', KEYS[1], string.format('%.0f-0', tonumber(ms) + 1), ARGV[4], payload)
    end
    redis.call('SET', KEYS[i], id, 'EX', ARGV[1])
    answer[#answer + 1] = 1
    answer[#answer + 1] = id
  end
end
return answer
