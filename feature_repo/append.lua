-- Appends events to the stream, each once: the event id is remembered together with the stream id it got.
-- KEYS: stream, then one key per event that remembers its id. ARGV: seconds to remember, largest counter within a
-- millisecond that a seq can hold, then one payload per event.
-- Returns for every event 1 (appended) or 0 (known), and its stream id.
local answer = {}
for i = 2, #KEYS do
  local known = redis.call('GET', KEYS[i])
  if known then
    answer[#answer + 1] = 0
    answer[#answer + 1] = known
  else
    local payload = ARGV[i + 1]
    local id = redis.call('XADD', KEYS[1], '*', 'e', payload)
    local ms, counter = string.match(id, '(%d+)-(%d+)')
    if tonumber(counter) > tonumber(ARGV[2]) then  -- the clock stands still or was set back: go on a millisecond later
      redis.call('XDEL', KEYS[1], id)
      id = redis.call('XADD', KEYS[1], string.format('%.0f-0', tonumber(ms) + 1), 'e', payload)
    end
    redis.call('SET', KEYS[i], id, 'EX', ARGV[1])
    answer[#answer + 1] = 1
    answer[#answer + 1] = id
  end
end
return answer
